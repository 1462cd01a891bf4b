"""The options and the output that commands for recorded dialogues share."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deskwire_cli.machine.problem import Problem
from deskwire_cli.plain import plain
from deskwire_cli.recorded.dialogues import Rules, Speaker, speakers, survey
from deskwire_cli.recorded.lines import size_of
from deskwire_cli.recorded.oddities import Balance

LEFT_OUT: Final = 4
"""Exit code: everything that could be done is done, and something of the file is left out."""

StrictOption = Annotated[
    bool, typer.Option("--strict", help="Do nothing when anything would be left out.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Only read the file, and say what would be left out.")
]
AsOption = Annotated[
    list[str] | None,
    typer.Option("--as", metavar="NAME=SPEAKER", help="Who NAME is; may be given several times."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
HomeOption = Annotated[Path | None, typer.Option(help="The suite's home; default $DESKWIRE_HOME.")]


def who_is_who(
    known: Mapping[str, Speaker], allowed: Mapping[str, Speaker], mapped: list[str] | None
) -> dict[str, Speaker]:
    """Return who is who. A mapping in another form ends the command as wrong usage."""
    try:
        return speakers(known, allowed, mapped or [])
    except ValueError as error:
        raise typer.BadParameter(plain(error), param_hint="--as") from None


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show progress on a terminal's stderr."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress


def read_first(path: Path, rules: Rules, progress: Progress, *, strict: bool) -> Balance:
    """Read the whole file, say on stderr what is left out, and return the balance.

    Raises Problem for a file that can't be read, and with `strict` when anything would be left out.
    """
    task = progress.add_task("reading the file (bytes)", total=size_of(path))
    balance = survey(path, rules, lambda seen: progress.update(task, completed=seen))
    for line in balance.lines():
        print(plain(line), file=sys.stderr)
    if strict and not balance.is_whole:
        count = sum(balance.count(kind) for kind in balance.places)
        raise Problem(f"{path} has {count:,} oddities, and with --strict none is left out")
    return balance
