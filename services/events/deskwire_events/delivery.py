"""One adapter's deliveries: from records to pushes, again and again until each event's way has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from deskwire.adapters.v1 import system_adapter_service_pb2 as pb
from deskwire.events.v1.event_pb2 import Event
from deskwire_common import events as codec
from deskwire_common import telemetry
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import InvalidArgument, Unavailable
from deskwire_common.events import DomainEvent
from deskwire_common.ids import Ids
from deskwire_common.kafka import Record
from deskwire_common.logging import get_logger
from deskwire_common.loops import Backoff
from deskwire_common.metrics import METRICS
from deskwire_common.outbox import Outbox
from deskwire_common.pagination import ANSWER_BYTES
from deskwire_events import domain, events, store
from deskwire_events.adapters import AdapterAway, OpenAdapter, Result, TooLarge
from deskwire_events.domain import Adapter, Delivery, Outcome
from deskwire_events.records import MAX_EVENT, check, json_of, log_unreadable

#: Pauses between tries, in seconds: the first, the longest, and the longest that an adapter may ask for.
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 30.0
LONGEST_ASKED: Final = 3600.0
DEAD_LETTERED: Final = "delivery_dead_lettered"


@dataclass(slots=True)
class _Item:
    record: Record
    event: Event
    json: str
    traceparent: str
    attempts: int = 0
    size: int = field(init=False)
    """Bytes in a Push. JSON of control characters has six times those of its record."""

    def __post_init__(self) -> None:
        self.size = self.pushed("0" * 55).ByteSize()

    def pushed(self, traceparent: str) -> pb.PushItem:
        """Return it as it is sent."""
        return pb.PushItem(
            event=self.event, json=self.json, attempt=self.attempts, traceparent=traceparent
        )


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where the ends of deliveries are written, with the events that tell of dead letters."""

    db: Database
    outbox: Outbox
    clock: Clock
    ids: Ids
    dead_letter_limit: int

    async def record(self, adapter: Adapter, ends: Sequence[Delivery]) -> None:
        """Write ends in one transaction. Writing an end again changes no number of dead letters."""

        async def work(uow: UnitOfWork) -> None:
            found = await store.adapters.lock(uow, adapter.tenant, adapter.adapter_id)
            if found is None:
                return
            place = (uow, adapter.tenant, adapter.adapter_id)
            known = await store.deliveries.dead_letters(*place, [end.event_id for end in ends])
            news = [end for end in ends if end.event_id not in known]
            after = domain.delivered(found, news, limit=self.dead_letter_limit)
            told: list[DomainEvent] = []
            for end in news:
                # A dead letter about a dead letter would beget the next one, for ever.
                if end.outcome is Outcome.REJECTED and end.event_type != DEAD_LETTERED:
                    sequence = found.version + len(told) + 1
                    told.append(
                        events.dead_letter_event(
                            found, end, sequence, ids=self.ids, clock=self.clock
                        )
                    )
            version = found.version + len(told)
            await store.adapters.save(uow, replace(after, version=version))
            await store.deliveries.add(*place, ends)
            await self.outbox.add(uow, told)

        await self.db.run(work)

    async def trouble(self, adapter: Adapter, error: str) -> None:
        """Say that pushes fail at the moment, and why."""
        await self.db.run(lambda uow: store.adapters.set_trouble(uow, adapter, error))


class Delivering:
    """Pushes records to one adapter. `handled` counts records whose way has ended."""

    def __init__(
        self, adapter: Adapter, ledger: Ledger, *, open_adapter: OpenAdapter, clock: Clock
    ) -> None:
        self._adapter = adapter
        self._ledger = ledger
        self._clock = clock
        self._client = open_adapter(adapter)
        self._wanted = adapter.wanted
        self._trouble = ""
        self.handled = 0

    async def close(self) -> None:
        """End the connection to the adapter."""
        await self._client.close()

    async def handle(self, records: Sequence[Record]) -> None:
        """Push what this adapter is to get. Returns when all of it has ended, however long that takes."""
        items = [item for record in records if (item := self._item(record)) is not None]
        rest = items
        while rest:
            rest = await self._push_some(rest)
        self.handled += len(records)

    # -- choosing ----------------------------------------------------------------------------------

    def _item(self, record: Record) -> _Item | None:
        """The item of a record, None when this adapter must not or need not get it."""
        adapter = self._adapter
        # The headers tell most of it without decoding the value.
        tenant = codec.header(record.headers, "ce_tenantid")
        if tenant is not None and tenant != adapter.tenant.encode():
            return None
        try:
            event = codec.decode(record.topic, record.value, record.headers)
            check(event)
        except InvalidArgument as error:
            log_unreadable(record, error)
            METRICS.kafka_consumed.labels("hub", "invalid").inc()
            return None
        if event.tenant_id != adapter.tenant or event.origin == adapter.system_id:
            return None
        if not self._wants(event):
            return None
        return _Item(record, event, json_of(record, event), codec.traceparent_of(record.headers))

    def _wants(self, event: Event) -> bool:
        if self._wanted and event.event_type not in self._wanted:
            return False
        # What the hub says about an adapter is not for that adapter.
        return not (event.event_type == DEAD_LETTERED and event.subject == self._adapter.subject)

    # -- pushing -----------------------------------------------------------------------------------

    async def _push_some(self, items: list[_Item]) -> list[_Item]:
        """Push a batch of the first items until all of it has ended; the others."""
        pauses = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        batch: list[_Item] | None = None
        rest: list[_Item] = []
        fresh_session = False
        while batch is None or batch:
            asked: float | None = None
            detail = ""
            try:
                schema = await self._client.ready()
                if batch is None:
                    batch, rest = _split(items, schema.max_batch)
                results = await self._push_in_parts(batch)
            except Unavailable as error:
                self._after_failure(error)
                failure, asked = error.message, error.retry_after
                detail = error.detail if isinstance(error, AdapterAway) else ""
            else:
                ends = list(zip(batch, results, strict=True))
                batch = [item for item, result in ends if not result.outcome.final]
                await self._settle([end for end in ends if end[1].outcome.final])
                if not batch:
                    break
                waiting = [result for _, result in ends if not result.outcome.final]
                expired = any(each.outcome is Outcome.AUTH_EXPIRED for each in waiting)
                if expired:
                    self._client.forget_session()
                    if not fresh_session:
                        # Sessions end; that is no failure until a fresh one is refused too.
                        fresh_session = True
                        continue
                failure = waiting[0].detail or waiting[0].outcome.name.lower()
                asked = max((each.retry_after or 0.0 for each in waiting), default=0.0)
                if len(ends) > len(batch):
                    pauses.reset()
            fresh_session = False
            await self._tell_trouble(failure, detail)
            own = pauses.next()
            await asyncio.sleep(min(asked, LONGEST_ASKED) if asked else own)
        return rest

    def _after_failure(self, error: Unavailable) -> None:
        if error.metadata.get("code") in {"UNAUTHENTICATED", "PERMISSION_DENIED"}:
            self._client.forget_session()
        else:
            self._client.forget()

    async def _push_in_parts(self, batch: Sequence[_Item]) -> list[Result]:
        """Push a batch, in halves when it is too large for the adapter; one event that is too large ends here."""
        if batch[0].size > MAX_EVENT:
            return [_never(f"it has {batch[0].size} bytes, and a Push takes {MAX_EVENT}")]
        try:
            return await self._push(batch)
        except TooLarge as error:
            if len(batch) == 1:
                return [_never(error.message)]
        half = len(batch) // 2
        first = await self._push_in_parts(batch[:half])
        return first + await self._push_in_parts(batch[half:])

    async def _push(self, batch: Sequence[_Item]) -> list[Result]:
        spans = [self._span(item) for item in batch]
        sent = [
            telemetry.traceparent_of(span) or item.traceparent
            for span, item in zip(spans, batch, strict=True)
        ]
        for item in batch:
            item.attempts += 1
        failed = "UNAVAILABLE"
        results: list[Result] = []
        try:
            results = await self._client.push(
                [item.pushed(trace) for item, trace in zip(batch, sent, strict=True)],
                sent[0],
            )
        finally:
            outcomes = [result.outcome.name for result in results] or [failed] * len(batch)
            for span, outcome in zip(spans, outcomes, strict=True):
                span.set_attribute("deskwire.outcome", outcome)
                if outcome not in {"DELIVERED", "DUPLICATE", "SKIPPED"}:
                    span.set_status(Status(StatusCode.ERROR, outcome))
                span.end()
                METRICS.hub_deliveries.labels(outcome.lower()).inc()
        for item, trace in zip(batch, sent, strict=True):
            item.traceparent = item.traceparent or trace
        return results

    def _span(self, item: _Item) -> Span:
        return telemetry.tracer().start_span(
            "hub.push",
            context=telemetry.context_of(item.traceparent) or Context(),
            kind=SpanKind.CLIENT,
            attributes={
                "deskwire.event_id": item.event.event_id,
                "deskwire.event_type": item.event.event_type,
                "deskwire.adapter_id": self._adapter.adapter_id,
                "deskwire.attempt": item.attempts + 1,
                "messaging.destination.name": item.record.topic,
            },
        )

    # -- writing down ------------------------------------------------------------------------------

    async def _settle(self, ends: Sequence[tuple[_Item, Result]]) -> None:
        if not ends:
            return
        now = to_micros(self._clock.now())
        for item, result in ends:
            seconds = now / 1e6 - item.record.timestamp / 1000
            METRICS.hub_delivery_seconds.observe(max(seconds, 0.0))
            if result.outcome is Outcome.REJECTED:
                METRICS.hub_dead_letters.inc()
                get_logger().warning(
                    "dead_letter",
                    adapter_id=self._adapter.adapter_id,
                    event_id=item.event.event_id,
                    detail=result.detail,
                )
        await self._ledger.record(
            self._adapter,
            [
                Delivery(
                    event_id=item.event.event_id,
                    event_type=item.event.event_type,
                    outcome=result.outcome,
                    detail=result.detail,
                    attempts=item.attempts,
                    time=now,
                    trace_id=item.event.trace_id,
                    traceparent=item.traceparent,
                )
                for item, result in ends
            ],
        )
        # Written as ACTIVE: the next trouble is news again.
        self._trouble = ""

    async def _tell_trouble(self, failure: str, detail: str) -> None:
        if failure == self._trouble:
            return
        get_logger().warning(
            "adapter_in_trouble",
            tenant=self._adapter.tenant,
            adapter_id=self._adapter.adapter_id,
            target=self._adapter.target,
            error=detail or failure,
        )
        await self._ledger.trouble(self._adapter, failure)
        self._trouble = failure


def _never(detail: str) -> Result:
    """Return the end of an event that can't reach the adapter, however often it is pushed."""
    return Result(outcome=Outcome.REJECTED, detail=detail, retry_after=None)


def _split(items: list[_Item], max_batch: int) -> tuple[list[_Item], list[_Item]]:
    """The first items that fit into one Push, at least one; and the others."""
    size = 0
    for count, item in enumerate(items):
        size += item.size
        if count == max_batch or (count and size > ANSWER_BYTES):
            return items[:count], items[count:]
    return items, []
