"""Carries row changes over: one worker per source, in the process that owns its slot.

A batch goes to Kafka and, as far as the customer rule says, to chat; when both have acknowledged all of it, the
position is saved, in one transaction with the sequences that were given out. Nothing is skipped: whatever fails is
tried again from there, with the same event ids, sequences and request ids.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_cdc import events, store
from deskwire_cdc.clients import CustomerClient, CustomerRefused
from deskwire_cdc.domain.changes import Batch, NumberedChange, number, subject_of
from deskwire_cdc.domain.customers import CustomerCall, customer_call, missing_fields
from deskwire_cdc.domain.sources import (
    Source,
    SourceUnreachable,
    SourceUnusable,
    State,
    without_secret,
)
from deskwire_cdc.sources import Reader, ReaderOptions, open_reader
from deskwire_common import events as codec
from deskwire_common import telemetry, topics
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import Aborted, DeskwireError
from deskwire_common.ids import Ids
from deskwire_common.kafka import MAX_RECORD_BYTES, Outgoing, Producer, ensure_topics
from deskwire_common.logging import get_logger
from deskwire_common.loops import Backoff
from deskwire_common.metrics import METRICS
from deskwire_common.ownership import Held

#: Pauses between tries, in seconds: doubled up to the longest; a refused source waits for a person.
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 15.0
REFUSED_PAUSE: Final = 60.0
#: Customers that are written at the same time, per source; those of one row are in order.
CONCURRENT_CALLS: Final = 16
KIND: Final = "source"


@dataclass(frozen=True, slots=True)
class Parts:
    """What workers are made of."""

    db: Database
    kafka: str
    customers: CustomerClient
    clock: Clock
    ids: Ids
    options: ReaderOptions


@dataclass(slots=True)
class _Call:
    """A customer call in the trace of its change."""

    call: CustomerCall
    traceparent: str


@dataclass(slots=True)
class _Deliveries:
    """What a batch becomes."""

    records: list[Outgoing] = field(default_factory=list)
    calls: dict[str, list[_Call]] = field(default_factory=lambda: defaultdict(list))
    """By subject."""


class Worker:
    """Follows one source until it is cancelled, or somebody else's."""

    def __init__(self, source: Source, parts: Parts, held: Held) -> None:
        self._source = source
        self._parts = parts
        self._held = held
        self._producer = Producer(parts.kafka, f"cdc-{source.source_id}")
        self._slots = asyncio.Semaphore(CONCURRENT_CALLS)
        self._pauses = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        self._error = ""
        """What failed last and can't be mended by trying again: shown until the next of its kind."""

    async def run(self) -> None:
        """Endless; a source, broker, chat or database that is away only makes it wait."""
        await self._producer.start()
        try:
            while True:
                try:
                    await self._once()
                except Aborted:
                    return
                except SourceUnreachable as error:
                    await self._wait(State.RETRYING, error.message, error.detail)
                except SourceUnusable as error:
                    message = f"{error.setting}: {error.message}"
                    await self._wait(State.REFUSED, message, error.detail)
                except (DeskwireError, OSError) as error:
                    await self._wait(State.RETRYING, str(error))
                except Exception as error:  # noqa: BLE001 - see below; it is logged and shown
                    # One source's unreadable row must not end the others' workers.
                    get_logger().exception("source_worker_failed", source=self._source.aggregate_id)
                    await self._wait(State.RETRYING, f"{type(error).__name__}: {error}")
        finally:
            await self._producer.close()

    async def _once(self) -> None:
        source = await self._parts.db.run(self._take_over)
        if source is None:
            raise Aborted("the source was deleted")
        self._source = source
        reader = open_reader(source, self._parts.options)
        try:
            await self._follow(reader)
        finally:
            await reader.close()

    async def _take_over(self, uow: UnitOfWork) -> Source | None:
        # Whoever has lost the slot meanwhile can't take the source from its new owner.
        await self._held.fence(uow)
        return await store.sources.take_over(uow, self._source)

    async def _follow(self, reader: Reader) -> None:
        source = self._source
        changes_topics = [topics.changes_topic(source.source_id, name) for name in source.tables]
        await ensure_topics(self._parts.kafka, changes_topics)
        await reader.check()
        await reader.install()
        await self._snapshot(reader)
        async with aclosing(reader.batches(self._source.position)) as batches:
            async for batch in batches:
                await self._deliver(batch)
                await reader.confirm(batch.position)

    async def _snapshot(self, reader: Reader) -> None:
        """The rows that were there before, unless the reader brings them within the stream."""
        while True:
            async with self._parts.db.read() as connection:
                changes = await store.progress.staged_changes(connection, self._source)
            if not changes:
                if not self._source.snapshot_cursor:
                    return
                chunk = await reader.snapshot_chunk(
                    self._source.snapshot_cursor, self._source.position
                )
                changes = list(chunk.changes)
                staging = replace(self._source, snapshot_cursor=chunk.cursor)
                await self._parts.db.run(
                    lambda uow, staging=staging, changes=changes: store.progress.stage(  # type: ignore[misc]
                        uow, staging, changes
                    )
                )
                self._source = staging
            batch = Batch(changes, self._source.position, len(changes), snapshot=True)
            await self._deliver(batch, staged=True)

    async def _deliver(self, batch: Batch, *, staged: bool = False) -> None:
        source = self._source
        subjects = list({subject_of(source, change) for change in batch.changes})
        async with self._parts.db.read() as connection:
            before = await store.progress.last_sequences(connection, subjects) if subjects else {}
        numbered, after = number(source, batch.changes, before, source.read_count)
        deliveries = self._deliveries(numbered)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publish(deliveries.records))
            for calls in deliveries.calls.values():
                group.create_task(self._sync(calls))
        now = to_micros(self._parts.clock.now())
        if batch.notice:
            self._error = batch.notice
        done = replace(
            source,
            position=batch.position,
            # A changed primary key makes two changes of one row: numbers must not be given out twice.
            read_count=source.read_count + max(batch.read_count, len(batch.changes)),
            change_count=source.change_count + len(batch.changes),
            last_change_at=now if batch.changes else source.last_change_at,
            state=State.SNAPSHOT if batch.snapshot else State.STREAMING,
            last_error=self._error,
        )
        await self._parts.db.run(lambda uow: store.progress.save(uow, done, after, unstage=staged))
        self._source = done
        self._pauses.reset()
        self._measure(batch, now)

    def _deliveries(self, numbered: Sequence[NumberedChange]) -> _Deliveries:
        source, result = self._source, _Deliveries()
        for each in numbered:
            change = each.change
            attributes = {
                "deskwire.event_id": each.event_id,
                "deskwire.tenant_id": source.tenant_id,
                "deskwire.source_id": source.source_id,
                "db.collection.name": change.table,
                "db.operation.name": change.operation.value,
            }
            with telemetry.span("cdc.change", attributes=attributes):
                event = events.row_changed(
                    source, each, ids=self._parts.ids, clock=self._parts.clock
                )
                value = codec.encode(event)
                if len(value) > MAX_RECORD_BYTES:
                    raise SourceUnusable(
                        "tables",
                        f"Row {each.subject} makes an event of {len(value)} bytes, more than "
                        f"{MAX_RECORD_BYTES}: take {change.table} out of the source.",
                    )
                headers = codec.headers(event)
                result.records.append((event.target.name, each.subject.encode(), value, headers))
                call = customer_call(source, each)
                if call is not None:
                    result.calls[each.subject].append(_Call(call, event.traceparent))
        return result

    async def _publish(self, records: Sequence[Outgoing]) -> None:
        pauses = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        while True:
            try:
                return await self._producer.send_batch(records)
            except DeskwireError as error:
                # Some of them may be there; no later change of a row may overtake one that isn't.
                await self._producer.purge_and_rebuild()
                await self._note(State.RETRYING, error.message)
            await pauses.pause()

    async def _sync(self, calls: Sequence[_Call]) -> None:
        async with self._slots:
            for each in calls:
                with telemetry.span("cdc.upsert_customer", traceparent=each.traceparent):
                    known = await self._upsert(each.call)
                    rest = None if known is None else missing_fields(each.call, known)
                    if rest is not None:
                        await self._upsert(rest)

    async def _upsert(self, call: CustomerCall) -> dict[str, str] | None:
        """The customer's fields; None when chat will never take this."""
        calls = METRICS.cdc_sync_calls
        pauses = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        while True:
            try:
                fields = await self._parts.customers.upsert(self._source, call)
            except CustomerRefused as error:
                calls.labels(self._source.source_id, "refused").inc()
                if str(error):
                    self._error = f"a customer was refused, request {call.request_id}: {error}"
                    get_logger().warning(
                        "customer_refused", source=self._source.aggregate_id, reason=str(error)
                    )
                return None
            except DeskwireError as error:
                calls.labels(self._source.source_id, "retried").inc()
                await self._note(State.RETRYING, error.message)
                await pauses.pause(at_least=error.retry_after or 0.0)
            else:
                calls.labels(self._source.source_id, "done").inc()
                return dict(fields)

    async def _wait(self, state: State, message: str, detail: str = "") -> None:
        get_logger().warning(
            "source_failed",
            source=self._source.aggregate_id,
            state=state.value,
            error=detail or message,
        )
        await self._note(state, message)
        if state is State.REFUSED:
            await asyncio.sleep(REFUSED_PAUSE)
            return
        await self._pauses.pause()

    async def _note(self, state: State, message: str) -> None:
        """Make it visible; when our own database is away, too, the log has to do."""
        shown = without_secret(message, self._source.url)
        if (self._source.state, self._source.last_error) == (state, shown):
            return
        noted = replace(self._source, state=state, last_error=shown)
        with suppress(DeskwireError):
            await self._parts.db.run(lambda uow: store.progress.save_state(uow, noted))
            self._source = replace(self._source, state=state, last_error=shown)

    def _measure(self, batch: Batch, now: int) -> None:
        if not batch.changes:
            return
        source = self._source.source_id
        for change in batch.changes:
            METRICS.cdc_changes.labels(source, change.table).inc()
        last = batch.changes[-1]
        METRICS.cdc_read_lag_seconds.labels(source).set((last.read_at - last.committed_at) / 1e6)
        METRICS.cdc_sink_lag_seconds.labels(source).set((now - last.read_at) / 1e6)


class Sources:
    """The work on sources: each is a slot, of whichever process owns it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._deleted: dict[str, asyncio.Event] = {}
        """By incarnation: set when a source is deleted that this process works on."""

    async def ids(self, connection: AsyncConnection) -> list[str]:
        """The slots of all sources: the deleted ones are still to be cleared away."""
        live, deleted = await store.sources.every(connection)
        for source in deleted:
            if source.incarnation in self._deleted:
                self._deleted[source.incarnation].set()
        return [source.incarnation for source in (*live, *deleted)]

    async def work(self, held: Held) -> None:
        """Follow a source until it is deleted, and then clear away what was installed in it."""
        async with self._parts.db.read() as connection:
            live, deleted = await store.sources.every(connection)
        for source in live:
            if source.incarnation == held.id:
                await self._follow(source, held)
        for source in deleted:
            if source.incarnation == held.id:
                await self._clear_away(source)

    async def _follow(self, source: Source, held: Held) -> None:
        deleted = self._deleted[held.id] = asyncio.Event()
        tasks = {
            asyncio.create_task(
                Worker(source, self._parts, held).run(), name=f"source-{source.aggregate_id}"
            ),
            asyncio.create_task(deleted.wait()),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._deleted[held.id]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _clear_away(self, source: Source) -> None:
        reader = open_reader(source, self._parts.options)
        try:
            await reader.remove()
            await self._parts.db.run(lambda uow: store.sources.forget(uow, source))
        except (OSError, DeskwireError) as error:
            # It is tried again.
            get_logger().warning("source_not_cleared", source=source.aggregate_id, error=str(error))
        finally:
            await reader.close()
