"""The relay: the lowest rows to Kafka, again and again.

When Kafka refuses a record for good, the relay doesn't know at once which one it was: all of its batch on the wire
fail with it. So the largest of these are sent again, each as a batch of its own and one of each key at a time, while
later rows of their keys wait; what is refused then is parked. Where Kafka refuses a whole topic there is nothing to
find out: the topic's rows are parked without being sent. Once a minute one of its keys is tried, and when Kafka takes
it, the others follow.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from deskwire_common import telemetry
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import DeskwireError
from deskwire_common.kafka import Failure, Headers, Outgoing, Producer, Undelivered
from deskwire_common.logging import get_logger
from deskwire_common.loops import Backoff
from deskwire_common.metrics import METRICS
from deskwire_common.outbox.parking import KIND, Parking
from deskwire_common.outbox.rows import Outbox
from deskwire_common.ownership import Held, TermOver

#: Rows and bytes per round of the relay.
BATCH: Final = 2_000
BATCH_BYTES: Final = 4 << 20
#: Bytes of a row that Kafka may well refuse: the next one of its key isn't sent before it is known.
LARGE: Final = 16 << 10
#: Seconds between rounds that aren't full: each costs two transactions and a request to Kafka, whatever it carries.
SPACING: Final = 0.01
#: Seconds between looks at the table when nothing wakes the relay (another process wrote): soon after it found
#: something, and later.
BUSY_POLL: Final = 0.02
BUSY: Final = 5.0
POLL: Final = 0.5
#: Pauses after failures, in seconds.
FIRST_BACKOFF: Final = 0.2
MAX_BACKOFF: Final = 5.0
#: Seconds between two tries of a topic that Kafka refused.
TOPIC_PAUSE: Final = 60.0
#: Seconds between clean-ups of the kept rows.
FORGET_EVERY: Final = 600.0


class Faults(Protocol):
    """Named seams for tests; production sets none."""

    async def before_publish(self, rows: Sequence[Any]) -> None:
        """Called after rows were read and before they are handed to Kafka."""

    async def after_publish_before_delete(self, rows: Sequence[Any]) -> None:
        """Called when Kafka has acknowledged the rows, which are still in the table."""


class OutboxRelay:
    """Publishes the outbox of one database: the work of one slot."""

    KIND: Final = KIND

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        producer: Producer,
        *,
        batch: int = BATCH,
        batch_bytes: int = BATCH_BYTES,
        poll: float = POLL,
        topic_pause: float = TOPIC_PAUSE,
        faults: Faults | None = None,
        keep: float = 0.0,
    ) -> None:
        """`batch` and `batch_bytes`: where a round ends; one row may be larger.

        `keep`: seconds for which published rows stay in `outbox_published`; 0: not at all.
        """
        self._db = db
        self._outbox = outbox
        self._producer = producer
        self._batch = batch
        self._batch_bytes = batch_bytes
        self._poll = poll
        self._topic_pause = topic_pause
        self._faults = faults
        self._keep = keep
        self._parking = Parking(db, outbox)
        self._has_parked = False
        """Whether rows may be parked; only the relay parks."""
        self._closed: dict[str, tuple[str, float]] = {}
        """Topics that Kafka refuses: why, and when to try again."""
        self._refused: set[str] = set()
        """Topics with rows that are parked for their topic's sake."""
        self._suspects: set[int] = set()
        """Ids of rows that were refused together."""
        self._forgotten_at = 0.0
        self._found_at = 0.0
        self.published = 0

    async def work(self, held: Held) -> None:
        """Publish while the slot is held; outlasts a database or a broker that is away.

        The producer is the relay's own: on a failure everything in it is purged. A relay whose term is over deletes no
        row. Until it notices, it may publish rows a second time, since its successor begins at the lowest row. So may
        one that is suspended with its machine, whose clock stands still.
        """
        pauses = Backoff(FIRST_BACKOFF, MAX_BACKOFF, sleep=held.wait)
        await self._begin()
        try:
            while held.is_held:
                # Clear it before reading: a commit after the read sets it again.
                self._outbox.wake.clear()
                try:
                    found = await self._round(held)
                except TermOver:
                    raise
                except (DeskwireError, ConnectionError) as error:
                    get_logger().warning("outbox_round_failed", error=str(error))
                    # No later row of a key may overtake the one that failed.
                    await self._producer.purge_and_rebuild()
                    await pauses.pause()
                    continue
                pauses.reset()
                await self._rest(held, found)
        except BaseException:
            # The successor publishes the rows that are under way.
            await self._producer.purge_and_rebuild()
            raise

    async def _begin(self) -> None:
        """Forget what an earlier term knew; in between others were at work."""
        self._suspects.clear()
        self._has_parked = await self._parking.count() > 0
        topics = await self._parking.refused_topics()
        self._closed = {topic: (reason, 0.0) for topic, reason in topics.items()}
        self._refused = set(topics)

    async def drain(self, timeout: float = 10.0) -> bool:
        """Wait up to `timeout` seconds until the outbox is empty; return whether it is. A relay must be at work."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while (await self._outbox.pending(self._db))[0]:
                    self._outbox.wake.set()
                    await asyncio.sleep(0.02)
                return True
        return False

    async def _rest(self, held: Held, found: Sequence[Any]) -> None:
        """Wait for rows, not long for those of another process while there are some."""
        now = asyncio.get_running_loop().time()
        if found:
            self._found_at = now
            full = len(found) == self._batch or sum(row.size for row in found) >= self._batch_bytes
            if not full and not self._suspects:
                await held.wait(SPACING)
        else:
            busy = now - self._found_at < BUSY
            await held.wait(min(BUSY_POLL, self._poll) if busy else self._poll, self._outbox.wake)

    async def _round(self, held: Held) -> Sequence[Any]:
        """Publish or park the lowest rows; return them."""
        await self._housekeep()
        rows = await self._outbox.lowest(
            self._db, self._batch, self._batch_bytes, parked=self._has_parked
        )
        self._suspects &= {row.id for row in rows}
        ready: list[Any] = []
        suspects: list[Any] = []
        doubtful: set[tuple[str, str]] = set()
        refused: dict[int, str] = {}
        for row in rows:
            key = row.topic, row.key
            if row.waits or key in doubtful:
                continue
            if row.id in self._suspects:
                suspects.append(row)
                doubtful.add(key)
            elif row.topic in self._closed:
                refused[row.id] = self._closed[row.topic][0]
            else:
                ready.append(row)
                if row.size > LARGE:
                    doubtful.add(key)
        waiting = [row.id for row in rows if row.waits]
        if refused or waiting:
            await self._park(held, rows, refused, waiting)
        if ready:
            await self._publish(held, ready)
        if suspects:
            await self._producer.purge_and_rebuild(alone=True)
            await self._publish(held, suspects, alone=True)
            await self._producer.purge_and_rebuild()
        return rows

    async def _publish(self, held: Held, rows: Sequence[Any], *, alone: bool = False) -> None:
        """Publish rows; `alone`: each is a batch of its own, so what is refused is refused for itself, and parked."""
        failures = await self._send(held, rows)
        if not failures:
            self._suspects -= {row.id for row in rows}
            return
        if not any(failure.final for _, failure in failures):
            raise Undelivered(dict(enumerate(failure for _, failure in failures)))
        again = asyncio.get_running_loop().time() + self._topic_pause
        refused: dict[int, str] = {}
        for row, failure in failures:
            if failure.of_topic:
                self._closed[row.topic] = failure.reason, again
                self._refused.add(row.topic)
            if failure.of_topic or (alone and failure.final):
                refused[row.id] = failure.reason
        if alone:
            # What was refused with them is innocent, most likely.
            self._suspects.clear()
        else:
            final = [row for row, failure in failures if failure.final and not failure.of_topic]
            largest = max((row.size for row in final), default=0)
            self._suspects |= {row.id for row in final if row.size * 2 >= largest}
        if refused:
            await self._park(held, rows, refused)
        if not alone:
            # This producer takes no more of that partition.
            await self._producer.purge_and_rebuild()

    async def _send(self, held: Held, rows: Sequence[Any]) -> list[tuple[Any, Failure]]:
        """Publish rows, and delete those that Kafka has; return the others. Raises another error when nobody knows."""
        if self._faults is not None:
            await self._faults.before_publish(rows)
        held.ensure()
        failures: Mapping[int, Failure] = {}
        try:
            await self._producer.send_batch([_record(row) for row in rows])
        except Undelivered as error:
            failures = error.failures
        done = [row for index, row in enumerate(rows) if index not in failures]
        if done:
            if self._faults is not None:
                await self._faults.after_publish_before_delete(done)
            await self._delete(held, done)
        return [(rows[index], failure) for index, failure in failures.items()]

    async def _delete(self, held: Held, rows: Sequence[Any]) -> None:
        ids = [row.id for row in rows]

        async def work(uow: UnitOfWork) -> None:
            await held.fence(uow)
            await self._outbox.take_out(uow, ids, keep=self._keep > 0)

        await self._db.run(work)
        self.published += len(rows)
        for topic, count in Counter(row.topic for row in rows).items():
            METRICS.outbox_published.labels(topic).inc(count)
            if topic in self._refused and topic not in self._closed:
                self._refused.discard(topic)
                await self._parking.reopen(topic)

    async def _park(
        self,
        held: Held,
        rows: Sequence[Any],
        reasons: Mapping[int, str],
        waiting: Sequence[int] = (),
    ) -> None:
        """Set rows aside: refused ones with their reasons, and those of parked keys."""

        async def work(uow: UnitOfWork) -> None:
            await held.fence(uow)
            await self._parking.park(uow, reasons, waiting)

        # From here on each read asks for parked keys, also when this transaction's answer is lost.
        self._has_parked = True
        await self._db.run(work)
        for row in rows:
            if row.id in reasons:
                METRICS.outbox_refused.labels(row.topic, reasons[row.id]).inc()
                get_logger().error(
                    "event_parked", topic=row.topic, event_id=row.event_id, reason=reasons[row.id]
                )

    async def _housekeep(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._keep and now - self._forgotten_at >= FORGET_EVERY:
            await self._outbox.forget(self._db, keep=self._keep)
            self._forgotten_at = now
        for topic in [topic for topic, (_, again) in self._closed.items() if again <= now]:
            del self._closed[topic]
            await self._parking.reopen(topic, first=True)


def _record(row: Any) -> Outgoing:
    headers: Headers = [(name, value.encode()) for name, value in json.loads(bytes(row.headers))]
    traceparent: str = row.traceparent
    if traceparent and telemetry.sampled(traceparent):
        with telemetry.span(
            "outbox.publish",
            traceparent=traceparent,
            attributes={"messaging.destination.name": row.topic, "deskwire.event_id": row.event_id},
        ):
            traceparent = telemetry.current_traceparent() or traceparent
    if traceparent:
        headers.append(("traceparent", traceparent.encode()))
    return row.topic, row.key.encode(), bytes(row.value), headers
