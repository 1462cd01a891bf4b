"""Tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

_WIDE: Final = 10_000


def print_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], *, markup: bool = False
) -> None:
    """Print a table to stdout, each row in one line and each cell whole; `markup`: cells may contain colours."""
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # Without a width rich would cut cells at the terminal's, or at 80 columns in a pipe; but ids must stay whole.
    Console(highlight=False, width=_WIDE, markup=markup).print(table)
