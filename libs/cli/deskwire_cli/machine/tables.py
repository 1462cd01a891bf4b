"""Tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def print_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], *, markup: bool = False
) -> None:
    """Print a table to stdout, no cell broken over lines; `markup`: cells may say their colours."""
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, soft_wrap=True, markup=markup).print(table)
