"""`deskwire adapter`: those of the running suite (add, list, remove), and the conformance kit (test)."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deskwire.events.v1 import (
    adapter_pb2,
    adapter_registry_service_pb2_grpc,
)
from deskwire.events.v1 import adapter_registry_service_pb2 as registry_pb
from deskwire_adapter.conformance import Grade, NotThere, Report, Subject, examine
from deskwire_cli.machine.problem import Problem
from deskwire_cli.operator import JsonOption, Operator, TenantOption, new_request_id, show
from deskwire_cli.plain import plain, plain_json
from deskwire_cli.suite import TENANT

adapter_app = typer.Typer(
    name="adapter", help="Adapters (test, add, list, remove).", no_args_is_help=True
)
_COLORS = {
    Grade.PASSED: "green",
    Grade.WARNED: "yellow",
    Grade.SKIPPED: "dim",
    Grade.FAILED: "bold red",
}
FAILED = 1


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


@adapter_app.command("add")
def add_adapter(
    adapter: Annotated[str, typer.Argument(help="Your name for it, such as crm-main.")],
    target: Annotated[str, typer.Argument(help="host:port, or python:NAME of an entry point.")],
    system: Annotated[str, typer.Option(help="The system it stands for, such as crm:main.")],
    event_type: Annotated[
        list[str] | None, typer.Option(help="Only this type; may be repeated.")
    ] = None,
    config: Annotated[str, typer.Option(help="Its configuration: JSON, or @FILE.")] = "",
    credential: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, or NAME=@FILE; may be repeated.")
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(help="NAME=env:VARIABLE or NAME=file:/path of the hub's; may be repeated."),
    ] = None,
    tenant: TenantOption = TENANT,
    as_json: JsonOption = False,
) -> None:
    """Register an adapter that answers: events go to it from now on."""
    wanted = adapter_pb2.Adapter(
        adapter_id=adapter,
        target=target,
        system_id=system,
        event_types=event_type or (),
        config=_text(config),
        credentials=dict(_credential(each) for each in credential or []),
        secret_refs=dict(_pair("--secret", each) for each in secret or []),
    )
    request = registry_pb.RegisterAdapterRequest(request_id=new_request_id(), adapter=wanted)
    show_adapters([_registry(tenant).call("RegisterAdapter", request).adapter], as_json=as_json)


@adapter_app.command("list")
def list_adapters(tenant: TenantOption = TENANT, as_json: JsonOption = False) -> None:
    """Show the adapters of a tenant, and how they are doing."""
    pages = _registry(tenant).pages("ListAdapters", registry_pb.ListAdaptersRequest())
    show_adapters([each for page in pages for each in page.adapters], as_json=as_json)


@adapter_app.command("remove")
def remove_adapter(
    adapter: Annotated[str, typer.Argument(help="Its name.")],
    tenant: TenantOption = TENANT,
    as_json: JsonOption = False,
) -> None:
    """End pushing to an adapter. Added again under the same name, it goes on where it stopped."""
    request = registry_pb.RemoveAdapterRequest(request_id=new_request_id(), adapter_id=adapter)
    show_adapters([_registry(tenant).call("RemoveAdapter", request).adapter], as_json=as_json)


def show_adapters(found: Sequence[Any], *, as_json: bool) -> None:
    """Print adapters."""
    show(
        found,
        ("adapter", "system", "target", "state", "delivered", "dead letters", "last error"),
        lambda each: (
            each.adapter_id,
            each.system_id,
            each.target,
            adapter_pb2.AdapterState.Name(each.state).removeprefix("ADAPTER_STATE_").lower(),
            str(each.delivered_count),
            str(each.dead_letter_count),
            each.last_error,
        ),
        as_json=as_json,
    )


def _registry(tenant: str) -> Operator:
    stub = adapter_registry_service_pb2_grpc.AdapterRegistryServiceStub
    return Operator(stub, tenant, hub=True)


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
    name, value = _pair("--credential", given)
    return name, _text(value).removesuffix("\n")


def _pair(option: str, given: str) -> tuple[str, str]:
    name, separator, value = given.partition("=")
    if not name or not separator:
        # The name alone: what was meant as one may be a secret.
        raise Problem(f"{option}: write NAME=VALUE")
    return name, value
