"""Calls to the running suite as an operator, and the output of their answers."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from deskwire_cli.machine.problem import Problem
from deskwire_cli.machine.tables import print_table
from deskwire_cli.plain import plain, plain_json
from deskwire_cli.suite import load_suite
from deskwire_common.auth import KeysError, Role
from deskwire_common.rpc import domain_errors, make_channel

_SUBJECT: Final = "deskwire-cli"
_PAGE: Final = 500

TenantOption = Annotated[str, typer.Option("--tenant", help="Whose.")]
NameOption = Annotated[str, typer.Option("--name", help="A name for people.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON array.")]


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator's calls to a gRPC service; `tenant` goes into the token, `hub`: it is one of the event hub's."""

    stub: Callable[[Any], Any]
    tenant: str
    hub: bool = False

    def call(self, method: str, request: Message) -> Any:
        """Return one call's response. Raises Problem, DeskwireError. Blocks."""
        return self.calls(method, request)[0]

    def pages(self, method: str, request: Any) -> list[Any]:
        """Return the responses of a list, up to its last page. Raises Problem, DeskwireError. Blocks."""
        request.page_size = _PAGE
        return self.calls(method, request)

    def calls(self, method: str, request: Any) -> list[Any]:
        suite = load_suite()
        try:
            token = suite.token(Role.OPERATOR, _SUBJECT, tenant=self.tenant, seconds=60)
        except (ValueError, KeysError) as error:
            raise Problem(str(error)) from None

        async def ask() -> list[Any]:
            channel = make_channel(suite.events if self.hub else suite.chat, token=lambda: token)
            answers: list[Any] = []
            try:
                with domain_errors():
                    call = getattr(self.stub(channel), method)
                    answers.append(await call(request))
                    while getattr(answers[-1], "next_page_token", ""):
                        request.page_token = answers[-1].next_page_token
                        answers.append(await call(request))
            finally:
                await channel.close()
            return answers

        return asyncio.run(ask())


def new_request_id() -> str:
    """Return a request_id."""
    return str(uuid.uuid4())


def show(
    found: Sequence[Any],
    titles: Sequence[str],
    row: Callable[[Any], Sequence[str]],
    *,
    as_json: bool,
) -> None:
    """Print a table, or the JSON form of the messages with all their fields."""
    if as_json:
        form = [
            MessageToDict(
                each, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            for each in found
        ]
        print(plain_json(form, indent=2))
        return
    print_table(titles, [[plain(cell) for cell in row(each)] for each in found])


def format_time(stamp: Timestamp) -> str:
    """Return a time as people write it, in UTC."""
    return stamp.ToDatetime().isoformat(" ", "seconds") + "Z"
