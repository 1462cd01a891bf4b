"""The balance of a file as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from deskwire_cli.recorded.oddities import TURN_KINDS, Balance


def balance_table(console: Console, balance: Balance, title: str) -> None:
    """Print what a file holds, what of it was played or brought in, and what was left out by kind."""
    table = Table(title=title)
    for column in ("", "dialogues", "turns"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("in the file", f"{balance.dialogues:,}", f"{balance.turns:,}")
    table.add_row("played", f"{balance.dialogues_played:,}", f"{balance.played:,}")
    for kind in sorted(balance.places, key=lambda each: each.word):
        dialogues = "" if kind in TURN_KINDS else f"{balance.dialogues_out[kind]:,}"
        table.add_row(f"left out: {kind.word}", dialogues, f"{balance.turns_out[kind]:,}")
    console.print(table)
