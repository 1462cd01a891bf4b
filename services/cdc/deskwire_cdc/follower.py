"""Follows one source, in the process that owns its slot: its row changes go to the sinks.

A batch goes to Kafka and, as far as the customer rule says, to chat; when both have acknowledged all of it, the
position is saved, in one transaction with the sequences that were given out. Nothing is skipped: whatever fails is
tried again from there, with the same event ids, sequences and request ids.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Final

from deskwire_cdc import store
from deskwire_cdc.clients import CustomerClient
from deskwire_cdc.domain.changes import Batch, NumberedChange, Operation, number, subject_of
from deskwire_cdc.domain.sources import (
    Source,
    SourceUnreachable,
    SourceUnusable,
    State,
    without_secret,
)
from deskwire_cdc.sinks.customers import CustomerSink, Outcome, TracedCall, traced_call
from deskwire_cdc.sinks.kafka import KafkaSink, Record
from deskwire_cdc.sinks.retry import pauses
from deskwire_cdc.sources import Reader, ReaderOptions, open_reader
from deskwire_common import telemetry, topics
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import Aborted, DeskwireError
from deskwire_common.ids import Ids
from deskwire_common.kafka import Producer, ensure_topics
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_common.ownership import Held

#: Seconds between two looks at a source that waits for a person.
REFUSED_PAUSE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What all followers share."""

    db: Database
    kafka: str
    customers: CustomerClient
    clock: Clock
    ids: Ids
    options: ReaderOptions


class Follower:
    """Follows one source until it is cancelled, or until another process owns the source."""

    def __init__(self, source: Source, parts: Parts, held: Held) -> None:
        self._source = source
        self._parts = parts
        self._held = held
        self._producer = Producer(parts.kafka, f"cdc-{source.source_id}")
        self._kafka = KafkaSink(self._producer, self._retrying, clock=parts.clock, ids=parts.ids)
        self._customers = CustomerSink(parts.customers, self._retrying)
        self._pauses = pauses()
        self._notice = ""
        """What the source's log had last that an operator should know: shown until the next one."""

    async def run(self) -> None:
        """Follow the source without end; a source, broker, chat or database that is away only makes it wait."""
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
                    # One source's unreadable row must not end the others' followers.
                    get_logger().exception(
                        "source_follower_failed", source=self._source.aggregate_id
                    )
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
        # A process that has lost the slot meanwhile can't take the source from its new owner.
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
        """Deliver the rows that were there before, unless the reader brings them within the stream."""
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
        outcome = Outcome()
        records, calls = self._prepared(numbered)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._kafka.publish(source, records))
            for subject, theirs in calls.items():
                group.create_task(self._customers.write(source, subject, theirs, outcome))
        for subject, change in {each.subject: each.change for each in numbered}.items():
            if change.operation is Operation.DELETE:
                outcome.gone(subject)
        now = to_micros(self._parts.clock.now())
        unreadable = [each for each in records if each.unreadable]
        for each in unreadable:
            METRICS.cdc_rows_unreadable.labels(source.source_id, each.numbered.change.table).inc()
            self._notice = f"row {each.numbered.subject} can't be read: {each.unreadable}"
        self._notice = batch.notice or self._notice
        done = replace(
            source,
            position=batch.position,
            # A changed primary key makes two changes of one row: numbers must not be given out twice.
            read_count=source.read_count + max(batch.read_count, len(batch.changes)),
            change_count=source.change_count + len(batch.changes),
            last_change_at=now if batch.changes else source.last_change_at,
            state=State.SNAPSHOT if batch.snapshot else State.STREAMING,
        )

        async def save(uow: UnitOfWork) -> Source:
            count, last = await store.refused.note(uow, done, outcome.refused, outcome.passed)
            refused = f"{count} rows are refused, the last one is {last}" if count else ""
            shown = "; ".join(filter(None, (self._notice, refused)))
            saved = replace(done, refused_count=count, last_error=shown)
            await store.progress.save(uow, saved, after, unstage=staged)
            return saved

        self._source = await self._parts.db.run(save)
        self._pauses.reset()
        self._measure(batch, now)

    def _prepared(
        self, numbered: Sequence[NumberedChange]
    ) -> tuple[list[Record], dict[str, list[TracedCall]]]:
        """Return the records of a batch, and its customer calls by subject; each change begins a trace."""
        source = self._source
        records: list[Record] = []
        calls: dict[str, list[TracedCall]] = defaultdict(list)
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
                records.append(self._kafka.record(source, each))
                call = traced_call(source, each)
                if call is not None:
                    calls[each.subject].append(call)
        return records, calls

    async def _retrying(self, message: str) -> None:
        await self._note(State.RETRYING, message)

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
        """Show the state with the source. When this service's own database is away, too, only the log shows it."""
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
