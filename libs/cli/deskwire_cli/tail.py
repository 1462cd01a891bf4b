"""`deskwire tail`: events from the hub, as they happen or from some time ago."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from deskwire.events.v1 import event_hub_service_pb2 as hub_pb2
from deskwire.events.v1 import event_hub_service_pb2_grpc
from deskwire_cli.machine.problem import Problem
from deskwire_cli.plain import plain
from deskwire_cli.suite import TENANT, Suite, load_suite, open_channel
from deskwire_common import exact
from deskwire_common.auth import Role
from deskwire_common.errors import InvalidArgument, from_rpc_error

SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NO_CURSOR = re.compile(r"^$|^[-+]?\d+(-|[a-z]*$)|[^A-Za-z0-9_-]")
"""Texts that are no cursors but look like dates, lengths of time or words of several kinds."""
CREDIT = 1000  # events that may be on their way


@dataclass(frozen=True, slots=True)
class Delivery:
    """Some events as JSON objects, and the cursor that covers them and all before."""

    cursor: str
    events: list[dict[str, Any]]


def start_at(text: str, *, now: datetime) -> hub_pb2.SubscribeStart:
    """`earliest`, `latest`, `10m` (ago; s, m, h, d), an ISO 8601 time, or an earlier tail's cursor.

    A time before 1970 is before all events. Raises InvalidArgument for a text that can be none of these; the hub checks
    cursors.
    """
    if text == "earliest":
        return hub_pb2.SubscribeStart(earliest=Empty())
    if text == "latest":
        return hub_pb2.SubscribeStart(latest=Empty())
    if ago := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text, re.ASCII):
        seconds = float(ago[1]) * SECONDS[ago[2]]
        # Compared as numbers: a date has no room for 9999999d.
        since_1970 = now.timestamp() - seconds
        return start_then(EPOCH if since_1970 < 0 else now - timedelta(seconds=seconds))
    try:
        moment = datetime.fromisoformat(text)
        return start_then(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        if _NO_CURSOR.search(text):
            raise InvalidArgument(
                f"--from {text!r} is none of: earliest, latest, 10m (or s, h, d), "
                "2026-01-31T12:00:00Z, a cursor",
                field="from",
            ) from None
        return hub_pb2.SubscribeStart(cursor=text)


def start_then(moment: datetime) -> hub_pb2.SubscribeStart:
    """Return the start at a time; at the earliest event when the time isn't after the beginning of 1970."""
    if moment <= EPOCH:
        return hub_pb2.SubscribeStart(earliest=Empty())
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return hub_pb2.SubscribeStart(time=stamp)


async def subscribe(
    channel: grpc.aio.Channel,
    token: str,
    start: hub_pb2.SubscribeStart,
    *,
    event_types: Sequence[str] = (),
    subject: str = "",
    until_idle: float | None = None,
) -> AsyncIterator[Delivery]:
    """Yield deliveries in the order of the hub, empty ones too (the start, an idle stream).

    It ends when no event came for `until_idle` seconds; None: only with the stream. Raises
    grpc.aio.AioRpcError with the hub's reason.
    """
    start = hub_pb2.SubscribeStart.FromString(start.SerializeToString())
    start.event_types.extend(event_types)
    start.subjects.extend([subject] if subject else [])
    start.credit = CREDIT
    start.json = True
    stub = event_hub_service_pb2_grpc.EventHubServiceStub(channel)
    call = stub.Subscribe(metadata=(("authorization", f"Bearer {token}"),))
    await call.write(hub_pb2.SubscribeRequest(start=start))
    loop = asyncio.get_running_loop()
    last = loop.time()
    taken = 0
    try:
        while True:
            patience = None if until_idle is None else max(0.0, last + until_idle - loop.time())
            try:
                async with asyncio.timeout(patience):
                    answer = await call.read()
            except TimeoutError:
                return
            if not isinstance(answer, hub_pb2.SubscribeResponse):
                # The stream has ended: raise its status if that is an error.
                await check(call)
                return
            if answer.events:
                last = loop.time()
            yield Delivery(answer.cursor, [as_json(event) for event in answer.events])
            taken += len(answer.events)
            if taken * 2 >= CREDIT:
                credit = hub_pb2.SubscribeCredit(events=taken)
                await call.write(hub_pb2.SubscribeRequest(credit=credit))
                taken = 0
    finally:
        call.cancel()


async def check(call: Any) -> None:
    """Raise the AioRpcError of a stream that has ended with one."""
    if await call.code() is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            await call.code(),
            await call.initial_metadata(),
            await call.trailing_metadata(),
            await call.details(),
        )


def as_json(delivered: hub_pb2.DeliveredEvent) -> dict[str, Any]:
    """The event's JSON form, and beside it where it was read."""
    event: dict[str, Any] = exact.loads(delivered.json)
    event["kafka"] = {
        "topic": delivered.topic,
        "partition": delivered.partition,
        "offset": delivered.offset,
    }
    return event


def one_line(event: dict[str, Any]) -> str:
    """Print an event for people: time, type, subject, and as much of the data as fits."""
    data = exact.dumps(event.get("data"))
    data = data if len(data) <= 160 else data[:159] + "…"
    moment = str(event.get("occurred_at", ""))[11:23].rstrip("Z").ljust(12)
    head = f"{moment} {event['event_type']:<22} {event['subject']} #{event['sequence']}"
    return plain(f"{head} {event.get('origin', '')} {data}")


async def follow(
    suite: Suite,
    start: hub_pb2.SubscribeStart,
    *,
    tenant: str,
    types: Sequence[str],
    subject: str,
    as_json: bool,
    until_idle: float | None,
) -> None:
    """Print events until the stream ends. Raises Problem with the hub's reason."""
    async with open_channel(suite.events) as channel:
        while True:
            token = suite.token(Role.OPERATOR, "deskwire-tail", tenant=tenant)
            try:
                async for delivery in subscribe(
                    channel, token, start, event_types=types, subject=subject, until_idle=until_idle
                ):
                    for event in delivery.events:
                        print(plain(exact.dumps(event)) if as_json else one_line(event), flush=True)
                    start = hub_pb2.SubscribeStart(cursor=delivery.cursor)
                return
            except grpc.aio.AioRpcError as raised:
                error = from_rpc_error(raised)
                if error.reason_name != "TOKEN_EXPIRED":
                    raise Problem(plain(error)) from None


def tail(
    begin: Annotated[
        str,
        typer.Option(
            "--from", help="latest, earliest, 10m ago (s, m, h, d), an ISO 8601 time, or a cursor."
        ),
    ] = "latest",
    event_type: Annotated[
        list[str] | None, typer.Option("--type", help="Only this event type; may be repeated.")
    ] = None,
    subject: Annotated[str, typer.Option(help="Only of this aggregate, such as a ticket.")] = "",
    tenant: Annotated[str, typer.Option(help="Whose events.")] = TENANT,
    until_idle: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="End when none came for so long.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show events from the hub as they happen, or from some time ago, until Ctrl-C."""
    suite = load_suite()
    start = start_at(begin, now=datetime.now(UTC))
    if begin != "earliest" and start.HasField("earliest"):
        print(f"{plain(begin)} is before 1970: all events follow", file=sys.stderr)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(
            follow(
                suite,
                start,
                tenant=tenant,
                types=event_type or [],
                subject=subject,
                as_json=as_json,
                until_idle=until_idle,
            )
        )
