"""Subscribe: events of one tenant from a position on, as its stream asks for them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from deskwire.common.v1 import error_reason_pb2
from deskwire.events.v1 import event_hub_service_pb2 as pb
from deskwire.events.v1.event_pb2 import Event
from deskwire_common import events as codec
from deskwire_common.auth import Principal
from deskwire_common.clock import Clock, from_micros
from deskwire_common.errors import InvalidArgument, OutOfRange, Unavailable
from deskwire_common.kafka import Reader, Record, cluster_id
from deskwire_common.metrics import METRICS
from deskwire_common.pagination import ANSWER_BYTES
from deskwire_common.quota import Quota
from deskwire_events import spine
from deskwire_events.callers import tenant_caller
from deskwire_events.domain import (
    Cursor,
    Place,
    Selection,
    concealed,
    decode_cursor,
    encode_cursor,
    is_kept,
    readable,
    readable_topics,
    revealed,
)
from deskwire_events.records import MAX_EVENT, json_of, log_too_large, log_unreadable

#: Seconds of silence after which a stream gets a checkpoint.
CHECKPOINT: Final = 15.0
#: Seconds between two looks for newly captured tables.
LOOK_FOR_TABLES: Final = 5.0
#: Most events in one answer.
MAX_EVENTS: Final = 200
_READ: Final = 500
_OPENINGS: Final = 5
_MAX_STATUS_CURSOR: Final = 4096
# How late a stop or a broken stream is seen.
_TICK: Final = 0.5


@dataclass(frozen=True, slots=True)
class Subscriptions:
    """Makes the streams; `stopping` ends all of them."""

    kafka: str
    clock: Clock
    open: Quota
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(
        self, requests: AsyncIterator[pb.SubscribeRequest], _context: Any
    ) -> AsyncGenerator[pb.SubscribeResponse]:
        """One stream of what the caller's role may see in its tenant.

        Raises InvalidArgument, OutOfRange (CURSOR_EXPIRED), PermissionDenied, ResourceExhausted, Unavailable.
        """
        principal = tenant_caller()
        with self.open.taken(principal.tenant, "open streams"):
            async with aclosing(self._stream(principal, requests)) as responses:
                async for response in responses:
                    yield response

    async def _stream(
        self, principal: Principal, requests: AsyncIterator[pb.SubscribeRequest]
    ) -> AsyncGenerator[pb.SubscribeResponse, None]:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("kind") != "start":
            raise InvalidArgument("the first request of the stream must be start", field="kind")
        start = first.start
        selection = readable_topics(principal.role, start.event_types)
        credit = _Credit(start.credit)
        listener = asyncio.create_task(credit.listen(requests), name="subscribe-credit")
        METRICS.hub_subscriptions.inc()
        subscription = _Subscription(self, principal, start, selection, credit, listener)
        try:
            await subscription.open()
            async for response in subscription.answers():
                yield response
        finally:
            METRICS.hub_subscriptions.dec()
            listener.cancel()
            await subscription.close()
            await asyncio.gather(listener, return_exceptions=True)


class _Credit:
    """How many events may still be sent; None: no limit."""

    def __init__(self, initial: int) -> None:
        self.left: int | None = initial or None
        self.more = asyncio.Event()

    async def listen(self, requests: AsyncIterator[pb.SubscribeRequest]) -> None:
        """Take the later requests of a stream, until the client says no more."""
        async for request in requests:
            if request.WhichOneof("kind") != "credit":
                raise InvalidArgument("a stream has one start; then it gives credit", field="kind")
            if self.left is not None:
                self.left += request.credit.events
                self.more.set()

    def take(self) -> bool:
        """Use one, if there is one."""
        if self.left is None:
            return True
        if self.left == 0:
            return False
        self.left -= 1
        return True


class _Subscription:
    """The position of one stream. `_reader` is ahead of `_places` by the records in `_pending`."""

    def __init__(
        self,
        hub: Subscriptions,
        principal: Principal,
        start: pb.SubscribeStart,
        selection: Selection,
        credit: _Credit,
        listener: asyncio.Task[None],
    ) -> None:
        self._hub = hub
        self._tenant = principal.tenant
        self._role = principal.role
        self._start = start
        self._types = frozenset(start.event_types)
        self._selection = selection
        self._credit = credit
        self._listener = listener
        self._cluster = ""
        self._names: list[str] = []
        self._reader: Reader | None = None
        self._places: dict[Place, int] = {}
        self._pending: deque[Record] = deque()

    async def open(self) -> None:
        """Find the position. Raises OutOfRange when it isn't kept."""
        cursor = decode_cursor(self._start.cursor) if self._start.HasField("cursor") else None
        self._cluster = await cluster_id(self._hub.kafka)
        self._names = await spine.resolve(self._hub.kafka, self._selection)
        if cursor is not None:
            cursor = revealed(cursor, self._tenant, self._names)
        reader = await self._read_from(_begin(self._start, cursor, self._cluster))
        if cursor is None:
            return
        if not is_kept(cursor, self._cluster, reader.oldest, await reader.end_offsets()):
            oldest = self._cursor(reader.oldest)
            raise OutOfRange(
                "the cursor is older than what is kept, or of another cluster",
                # A status is a header, whose size is limited: `earliest` says the same.
                metadata={"oldest_cursor": oldest} if len(oldest) <= _MAX_STATUS_CURSOR else {},
            )

    async def close(self) -> None:
        """Stop reading."""
        if self._reader is not None:
            await self._reader.close()

    async def answers(self) -> AsyncIterator[pb.SubscribeResponse]:
        """The answers, for ever; it ends when there is no credit and none can come."""
        yield self._answer([])
        clock = self._hub.clock
        told = looked = clock.monotonic()
        while True:
            if self._hub.stopping.is_set():
                raise Unavailable(
                    "the hub is stopping; come back with the last cursor",
                    reason=error_reason_pb2.ERROR_REASON_SHUTTING_DOWN,
                    retry_after=1.0,
                )
            if self._listener.done():
                self._listener.result()
                if self._credit.left == 0:
                    return
            events = self._next()
            if events or clock.monotonic() - told >= CHECKPOINT:
                yield self._answer(events)
                told = clock.monotonic()
            elif self._pending:
                await self._credit_or_tick()
            else:
                await self._read()
            if self._selection.changes and clock.monotonic() - looked >= LOOK_FOR_TABLES:
                await self._look_for_tables()
                looked = clock.monotonic()

    async def _credit_or_tick(self) -> None:
        self._credit.more.clear()
        if self._credit.left == 0:
            try:
                async with asyncio.timeout(_TICK):
                    await self._credit.more.wait()
            except TimeoutError:
                return

    async def _read(self) -> None:
        if self._reader is None:
            raise Unavailable("the stream is closed")
        self._pending.extend(await self._reader.read(_READ, _TICK))

    async def _read_from(
        self, start: Literal["earliest", "latest"] | datetime | Mapping[Place, int]
    ) -> Reader:
        if self._reader is not None:
            await self._reader.close()
        for attempt in range(_OPENINGS):
            self._reader = reader = Reader(self._hub.kafka, self._names, start=start)
            try:
                await reader.start()
                break
            except Unavailable:
                # A partition that was just made may have no leader yet.
                await reader.close()
                if attempt == _OPENINGS - 1:
                    raise
                await asyncio.sleep(_TICK)
        self._places = dict(reader.positions)
        return reader

    async def _look_for_tables(self) -> None:
        """Read tables that are captured since the stream began, from their first change on."""
        names = await spine.resolve(self._hub.kafka, self._selection)
        if set(names) <= set(self._names):
            return
        self._names = names
        self._pending.clear()
        await self._read_from(dict(self._places))

    def _next(self) -> list[pb.DeliveredEvent]:
        """Up to an answer full of events from what was read; moves the position past them."""
        events: list[pb.DeliveredEvent] = []
        room = ANSWER_BYTES
        while self._pending and len(events) < MAX_EVENTS and room > 0:
            record = self._pending[0]
            event = self._event(record)
            if event is not None:
                delivered = self._delivered(event, record)
                room -= delivered.ByteSize()
                if (events and room < 0) or not self._credit.take():
                    break
                events.append(delivered)
            self._pending.popleft()
            self._places[record.topic, record.partition] = record.offset + 1
        return events

    def _event(self, record: Record) -> Event | None:
        """The event of a record if this stream wants it."""
        # The headers tell most of it without decoding the value.
        tenant = codec.header(record.headers, "ce_tenantid")
        if tenant is not None and tenant != self._tenant.encode():
            return None
        kind = codec.header(record.headers, "ce_type")
        if kind is not None and self._types and kind.decode("utf-8", "replace") not in self._types:
            return None
        try:
            event = codec.decode(record.topic, record.value, record.headers)
        except InvalidArgument as error:
            log_unreadable(record, error)
            return None
        wanted = (
            event.tenant_id == self._tenant
            and readable(self._role, event.event_type)
            and (not self._types or event.event_type in self._types)
            and self._start.subject in {"", event.subject}
        )
        return event if wanted else None

    def _delivered(self, event: Event, record: Record) -> pb.DeliveredEvent:
        delivered = pb.DeliveredEvent(
            topic=record.topic, partition=record.partition, offset=record.offset
        )
        if self._start.json:
            delivered.json = json_of(record, event)
        else:
            delivered.event.CopyFrom(event)
        if delivered.ByteSize() > MAX_EVENT:
            # Said, so that nobody takes it for delivered, and without its data, so that the stream goes on.
            log_too_large(record, delivered.ByteSize())
            delivered.ClearField("json")
            delivered.ClearField("event")
        return delivered

    def _answer(self, events: list[pb.DeliveredEvent]) -> pb.SubscribeResponse:
        return pb.SubscribeResponse(cursor=self._cursor(self._places), events=events)

    def _cursor(self, places: Mapping[Place, int]) -> str:
        return encode_cursor(concealed(Cursor(self._cluster, places), self._tenant))


def _begin(
    start: pb.SubscribeStart, cursor: Cursor | None, cluster: str
) -> Literal["earliest", "latest"] | datetime | Mapping[Place, int]:
    match start.WhichOneof("position"):
        case "cursor":
            # Of another cluster: its places mean nothing here.
            ours = cursor is not None and cursor.cluster == cluster
            return dict(cursor.places) if ours and cursor is not None else "earliest"
        case "earliest":
            return "earliest"
        case "time":
            try:
                return from_micros(start.time.ToMicroseconds())
            except (ValueError, OverflowError) as error:
                raise InvalidArgument("not a time", field="start.time") from error
        case _:
            return "latest"
