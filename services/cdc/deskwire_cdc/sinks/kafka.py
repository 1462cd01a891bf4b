"""The Kafka sink: every row change is an event on the topic of its table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from deskwire_cdc import events
from deskwire_cdc.domain.changes import NumberedChange, Operation
from deskwire_cdc.domain.sources import Source
from deskwire_cdc.sinks.retry import Retrying, pauses
from deskwire_common import events as codec
from deskwire_common.clock import Clock
from deskwire_common.errors import DeskwireError
from deskwire_common.ids import Ids
from deskwire_common.kafka import MAX_RECORD_BYTES, Outgoing, Producer, Undelivered


@dataclass(slots=True)
class Record:
    """A change as a record of Kafka's."""

    numbered: NumberedChange
    outgoing: Outgoing
    unreadable: str = ""
    """Why the record says only that the row was changed; empty: it has the row."""


class KafkaSink:
    """Publishes the row changes of one source."""

    def __init__(self, producer: Producer, retrying: Retrying, *, clock: Clock, ids: Ids) -> None:
        """`retrying` is called at every failure that is worth another try."""
        self._producer = producer
        self._retrying = retrying
        self._clock = clock
        self._ids = ids

    def record(self, source: Source, numbered: NumberedChange) -> Record:
        """Return a change as a record, in the current trace; one that is too large goes without what is too much."""
        for form in _forms(numbered):
            event = events.row_changed(source, form, ids=self._ids, clock=self._clock)
            value = codec.encode(event)
            if len(value) <= MAX_RECORD_BYTES or form.change.unreadable:
                break
        key = numbered.subject.encode()
        outgoing = event.target.name, key, value, codec.headers(event)
        return Record(numbered, outgoing, form.change.unreadable)

    async def publish(self, source: Source, records: list[Record]) -> None:
        """Return when Kafka has all of them, in their order; it may be away for any time.

        A record that Kafka refuses for itself is replaced by one without the row, here and on Kafka.
        """
        first, alone, again = 0, False, pauses()
        waiting: Sequence[int] = range(len(records))
        while first < len(waiting):
            batch = waiting[first : first + 1] if alone else waiting[first:]
            try:
                await self._producer.send_batch([records[index].outgoing for index in batch])
            except Undelivered as error:
                message = error.message
                missing = [batch[index] for index in sorted(error.failures)]
                refused = any(each.final and not each.of_topic for each in error.failures.values())
                waiting = [*missing, *waiting[first + len(batch) :]]
                first = 0
                if refused and alone:
                    refused = not records[missing[0]].unreadable
                    reason = next(iter(error.failures.values())).reason
                    records[missing[0]] = self._without_row(source, records[missing[0]], reason)
                # Whatever was refused with it is innocent, most likely: each is a batch of its own now.
                alone = alone or refused
            except DeskwireError as error:
                # Some of them may be there; no later change of a row may overtake one that isn't.
                message, refused = error.message, False
            else:
                first += len(batch)
                continue
            await self._producer.purge_and_rebuild(alone=alone)
            if not refused:
                await self._retrying(message)
                await again.pause()
        if alone:
            await self._producer.purge_and_rebuild()

    def _without_row(self, source: Source, record: Record, reason: str) -> Record:
        why = f"Kafka refuses its record: {reason}"
        form = _unreadable(record.numbered, why)
        event = events.row_changed(source, form, ids=self._ids, clock=self._clock)
        topic, key, _, _ = record.outgoing
        return Record(record.numbered, (topic, key, codec.encode(event), codec.headers(event)), why)


def _forms(numbered: NumberedChange) -> Iterator[NumberedChange]:
    """Yield a change whole, without the row before, and at last without any."""
    yield numbered
    change = numbered.change
    if change.before is not None and (change.after or change.operation is Operation.DELETE):
        yield replace(numbered, change=replace(change, before=None))
    yield _unreadable(numbered, f"its event has more than {MAX_RECORD_BYTES} bytes")


def _unreadable(numbered: NumberedChange, why: str) -> NumberedChange:
    change = replace(numbered.change, before=None, after=None, unreadable=why)
    return replace(numbered, change=change)
