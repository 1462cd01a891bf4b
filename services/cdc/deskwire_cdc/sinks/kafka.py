"""The Kafka sink: every row change is an event on the topic of its table."""

from __future__ import annotations

from collections.abc import Sequence

from deskwire_cdc import events
from deskwire_cdc.domain.changes import NumberedChange
from deskwire_cdc.domain.sources import Source, SourceUnusable
from deskwire_cdc.sinks.retry import Retrying, pauses
from deskwire_common import events as codec
from deskwire_common.clock import Clock
from deskwire_common.errors import DeskwireError
from deskwire_common.ids import Ids
from deskwire_common.kafka import MAX_RECORD_BYTES, Outgoing, Producer


class KafkaSink:
    """Publishes the row changes of one source."""

    def __init__(self, producer: Producer, retrying: Retrying, *, clock: Clock, ids: Ids) -> None:
        """`retrying` is called at every failure that is worth another try."""
        self._producer = producer
        self._retrying = retrying
        self._clock = clock
        self._ids = ids

    def record(self, source: Source, numbered: NumberedChange) -> Outgoing:
        """Return a change as a record, in the current trace. Raises SourceUnusable when it is too large."""
        event = events.row_changed(source, numbered, ids=self._ids, clock=self._clock)
        value = codec.encode(event)
        if len(value) > MAX_RECORD_BYTES:
            raise SourceUnusable(
                "tables",
                f"Row {numbered.subject} makes an event of {len(value)} bytes, more than "
                f"{MAX_RECORD_BYTES}: take {numbered.change.table} out of the source.",
            )
        return event.target.name, numbered.subject.encode(), value, codec.headers(event)

    async def publish(self, records: Sequence[Outgoing]) -> None:
        """Return when Kafka has all of them, in their order; it may be away for any time."""
        again = pauses()
        while True:
            try:
                return await self._producer.send_batch(records)
            except DeskwireError as error:
                # Some of them may be there; no later change of a row may overtake one that isn't.
                await self._producer.purge_and_rebuild()
                await self._retrying(error.message)
            await again.pause()
