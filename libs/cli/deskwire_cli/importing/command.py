"""`deskwire import FILE`: take over the history of another system, with the times that it had there."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Final

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress

from deskwire_cli.importing.requests import VISITOR, Form, time_of
from deskwire_cli.importing.sender import Outcome, Sender
from deskwire_cli.machine.problem import Problem
from deskwire_cli.plain import plain
from deskwire_cli.recorded.dialogues import Rules, Speaker
from deskwire_cli.recorded.options import (
    LEFT_OUT,
    AsOption,
    DryRunOption,
    HomeOption,
    JsonOption,
    StrictOption,
    progress_bar,
    read_first,
    who_is_who,
)
from deskwire_cli.recorded.recording import Recording
from deskwire_cli.recorded.tables import balance_table
from deskwire_cli.suite import TENANT, Suite, load_suite
from deskwire_common.auth import KeysError, Role
from deskwire_common.clock import SystemClock, now_micros
from deskwire_common.rpc import make_channel

_ALLOWED: Final = {each.value: each for each in Speaker}
_KNOWN: Final = {**_ALLOWED, "visitor": Speaker.CUSTOMER, "user": Speaker.CUSTOMER}
_SOURCE: Final = re.compile(r"[A-Za-z0-9._:@-]{1,48}")
_TOKEN_SECONDS: Final = 86_400.0


async def run(
    suite: Suite, token: str, form: Form, recording: Recording, progress: Progress
) -> Outcome:
    """Import everything that isn't left out. Raises Problem when the suite stays away."""
    outcome = Outcome(recording.balance)
    channel = make_channel(suite.chat, token=lambda: token)
    started = time.perf_counter()
    try:
        await Sender(channel, form, outcome, progress).send(recording)
    finally:
        await channel.close()
    outcome.seconds = time.perf_counter() - started
    return outcome


def import_file(
    file: Annotated[
        Path,
        typer.Argument(help="JSON lines {id, customer, turns: [{from, text, at}]}, plain or gzip."),
    ],
    source: Annotated[
        str, typer.Option(help="The system that the file comes from; ids are unique within it.")
    ] = "import",
    tenant: Annotated[str, typer.Option(help="Whose history it is.")] = TENANT,
    sent_at: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="The time of turns without one, as 2019-05-04T00:00:00Z."
        ),
    ] = "",
    as_: AsOption = None,
    strict: StrictOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Import conversations of another system: closed ones, with their customers, and the times that they had there.

    The whole file is read first; what can't be kept is left out and reported, by kind and place, without texts. Run it
    again whenever it was cut off: what is there already stays as it is, and the rest follows.

    Exit 0: everything is there. 1: it was cut off, or the file can't be read. 4: all else is there, and something was
    left out.
    """
    form = _form(source, sent_at)
    speakers = who_is_who(_KNOWN, _ALLOWED, as_)
    rules = Rules(speakers, customer_begins=False, check=form.check)
    with progress_bar() as progress:
        balance = read_first(file, rules, progress, strict=strict)
        outcome = Outcome(balance)
        if balance.played and not dry_run:
            suite = load_suite(home)
            outcome = uvloop.run(
                run(suite, _token(suite, tenant), form, Recording(file, rules, balance), progress)
            )
    for each in outcome.refused:
        place = f"line {each['line']}, dialogue {each['dialogue']}"
        print(plain(f"refused: {place}: {each['reason']}: {each['message']}"), file=sys.stderr)
    if as_json:
        print(json.dumps(balance.report("imported") if dry_run else outcome.report()))
    else:
        _show(outcome, dry_run=dry_run)
    raise typer.Exit(0 if balance.is_whole else LEFT_OUT)


def _form(source: str, sent_at: str) -> Form:
    if not _SOURCE.fullmatch(source) or source == VISITOR:
        raise typer.BadParameter(
            "1 to 48 of letters, digits and . _ : @ -, and not visitor", param_hint="--source"
        )
    now = now_micros(SystemClock())
    try:
        micros = time_of(sent_at) if sent_at else 0
    except ValueError:
        raise typer.BadParameter(
            "a time has the form 2019-05-04T08:15:00Z, with its zone", param_hint="--sent-at"
        ) from None
    if not 0 <= micros <= now:
        raise typer.BadParameter("a time is from 1970 to now", param_hint="--sent-at")
    return Form(source, micros, now)


def _token(suite: Suite, tenant: str) -> str:
    try:
        return suite.token(Role.OPERATOR, "deskwire-cli", tenant=tenant, seconds=_TOKEN_SECONDS)
    except (ValueError, KeysError) as error:
        raise Problem(str(error)) from None


def _show(outcome: Outcome, *, dry_run: bool) -> None:
    """Print the tables of an import."""
    title = "what would be imported" if dry_run else "import"
    balance_table(Console(), outcome.balance, title, done="imported")
    if not dry_run:
        report = outcome.report()
        print(
            f"{outcome.conversations:,} conversations: {outcome.stored:,} turns stored now, "
            f"{outcome.duplicates:,} were there already; {report['turns_per_second']:,.0f} turns a second"
        )
