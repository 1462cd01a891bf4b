"""`deskwire adapter test`: the conformance kit for adapters."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deskwire_adapter.conformance import Grade, NotThere, Report, Subject, examine
from deskwire_cli.machine.problem import Problem
from deskwire_cli.plain import plain, plain_json

adapter_app = typer.Typer(name="adapter", help="Adapters: test one.", no_args_is_help=True)
_COLORS = {
    Grade.PASSED: "green",
    Grade.WARNED: "yellow",
    Grade.SKIPPED: "dim",
    Grade.FAILED: "bold red",
}
FAILED = 1


@adapter_app.callback()
def _adapter() -> None:
    """Adapters: test one."""


@adapter_app.command("test")
def play_trials(
    target: Annotated[str, typer.Argument(help="host:port, or python:NAME of an entry point.")],
    command: Annotated[
        str,
        typer.Option(help="What begins the adapter at host:port, so that it can be killed too."),
    ] = "",
    config: Annotated[str, typer.Option(help="Its configuration: JSON, or @FILE.")] = "",
    credential: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, or NAME=@FILE; may be repeated.")
    ] = None,
    event_type: Annotated[
        str, typer.Option(help="Type of the events; else its Schema's first.")
    ] = "",
    data: Annotated[str, typer.Option(help="Data of the events: a JSON object, or @FILE.")] = "",
    tenant: Annotated[str, typer.Option(help="The tenant that it is told.")] = "conformance",
    only: Annotated[
        list[str] | None, typer.Option(help="Only this trial; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Play what the hub, the network and time do to an adapter. Exit code 1 when something failed.

    Its system gets some hundred events about subjects that begin with `conformance-`: use one for tests.
    """
    subject = Subject(
        target,
        command=command,
        tenant_id=tenant,
        config=_text(config),
        credentials=dict(_credential(each) for each in credential or []),
        event_type=event_type,
        data=_object(_text(data)) if data else None,
    )
    try:
        report = asyncio.run(examine(subject, only or ()))
    except NotThere as error:
        raise Problem(str(error)) from error
    if as_json:
        print(plain_json(report.as_json(), indent=2))
    else:
        _show(report)
    if not report.passed:
        sys.exit(FAILED)


def _show(report: Report) -> None:
    table = Table(title=plain(f"{report.adapter or report.target} at {report.target}"))
    for heading in ("trial", "result", "s", "seen"):
        table.add_column(heading, overflow="fold")
    for each in report.findings:
        grade = f"[{_COLORS[each.grade]}]{each.grade.value}[/]"
        table.add_row(each.trial, grade, f"{each.seconds:.1f}", _escaped(each.text))
    Console().print(table)


def _escaped(text: str) -> str:
    # rich takes what is in brackets for colors.
    return plain(text).replace("[", r"\[")


def _text(given: str) -> str:
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"{given[1:]} can't be read: {error}") from error


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise Problem(f"--data is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise Problem("--data is no JSON object")
    return found


def _credential(given: str) -> tuple[str, str]:
    name, separator, value = given.partition("=")
    if not name or not separator:
        raise Problem(f"--credential {given.partition('=')[0]}: write NAME=VALUE")
    return name, _text(value).removesuffix("\n")
