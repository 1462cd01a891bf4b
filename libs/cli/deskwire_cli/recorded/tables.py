"""The balance of a file as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from deskwire_cli.recorded.oddities import Balance, scope_of


def balance_table(console: Console, balance: Balance, title: str, done: str = "played") -> None:
    """Print what a file holds, what of it was done, and what was left out by kind."""
    table = Table(title=title)
    for column in ("", "dialogues", "turns"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("in the file", f"{balance.dialogues:,}", f"{balance.turns:,}")
    table.add_row(done, f"{balance.dialogues_played:,}", f"{balance.played:,}")
    for kind in sorted(balance.places, key=lambda each: each.word):
        if (scope := scope_of(kind)) == "field":
            table.add_row(f"field left out: {kind.word}", "", f"({balance.fields_out[kind]:,})")
            continue
        dialogues = f"{balance.dialogues_out[kind]:,}" if scope == "dialogue" else ""
        table.add_row(f"left out: {kind.word}", dialogues, f"{balance.turns_out[kind]:,}")
    console.print(table)
