"""From the committed log to Kafka: per partition by position, beside the path of messages and never in it.

The order of positions is the order of commits (one writer per partition), so "everything up to here is on Kafka" is one
number per partition. New commits are taken from memory; older messages, and those that didn't fit, are read from the
log.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Final

from deskwire_chat.domain.conversations import partition_of
from deskwire_chat.domain.messages import Message
from deskwire_chat.events import trace_id_of
from deskwire_chat.log import codec
from deskwire_chat.log.commands import Stored
from deskwire_chat.store import messages, partitions
from deskwire_chat.store.partitions import Partition
from deskwire_common import telemetry, topics
from deskwire_common.clock import from_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import DeskwireError
from deskwire_common.kafka import Headers, Outgoing, Producer
from deskwire_common.logging import get_logger
from deskwire_common.loops import Backoff
from deskwire_common.metrics import METRICS
from deskwire_common.pacing import Pace

_ROUND: Final = 4_000
"""Most records in flight."""
_LOG_CHUNK: Final = 500
_TAIL: Final = 20_000
"""Encoded messages kept in memory per partition while Kafka is behind."""
_QUIET_SECONDS: Final = 1.0
_LINGER: Final = 0.005
_SPACING: Final = 0.05
_MANY: Final = 16
"""A round of this many records is followed by the next after `_SPACING` seconds: each costs a request per partition."""
_FIRST_BACKOFF: Final = 0.2
_MAX_BACKOFF: Final = 5.0


class _Feed:
    """One partition's log on its way to Kafka, under one term."""

    __slots__ = ("head", "number", "published", "saved", "tail", "term")

    def __init__(self, partition: Partition) -> None:
        self.number = partition.id
        self.term = partition.term
        self.head = partition.head
        self.published = partition.published
        self.saved = partition.published
        # None stands for an imported message, which isn't published.
        self.tail: deque[tuple[int, Outgoing | None]] = deque()


class Publisher:
    """Publishes the log of the partitions that this process owns. The producer is its own.

    A late record of an earlier owner harms nothing: every owner begins where Kafka has everything before, so the first
    copy of each record is in order.
    """

    def __init__(self, db: Database, producer: Producer) -> None:
        self._db = db
        self._producer = producer
        self._feeds: dict[int, _Feed] = {}
        self._wake = asyncio.Event()
        self._pace = Pace(linger=_LINGER, spacing=_SPACING, many=_MANY)

    def own(self, partitions: Sequence[Partition]) -> None:
        """Begin where the partitions' last owner stopped."""
        for each in partitions:
            self._feeds[each.id] = _Feed(each)
        self._wake.set()

    def disown(self, numbers: Iterable[int]) -> None:
        """Stop publishing these partitions: another owner goes on from the position that is noted."""
        for number in numbers:
            self._feeds.pop(number, None)

    def committed(self, stored: Sequence[Stored]) -> None:
        """Take messages that were just committed (the writer's Log)."""
        for each in stored:
            feed = self._feeds.get(partition_of(each.message.conversation_id))
            position = each.message.position
            # The next owner publishes it, or it was read from the log already.
            if feed is None or position <= feed.head:
                continue
            feed.head = position
            if len(feed.tail) < _TAIL:
                feed.tail.append((position, _outgoing(each)))
        self._wake.set()

    def imported(self, partition: int, head: int) -> None:
        """Take imported messages that were just committed, up to `head`: they have places in the log, and no events."""
        feed = self._feeds.get(partition)
        if feed is None:
            return
        for position in range(feed.head + 1, head + 1):
            if len(feed.tail) < _TAIL:
                feed.tail.append((position, None))
        feed.head = max(feed.head, head)
        self._wake.set()

    def reached(self, heads: Mapping[int, int]) -> None:
        """Note how far the log goes: it may have messages whose commit was in doubt, which nobody reported."""
        for number, head in heads.items():
            feed = self._feeds.get(number)
            if feed is not None and feed.head < head:
                feed.head = head
                self._wake.set()

    def published(self, numbers: Iterable[int]) -> dict[int, int]:
        """Return up to which position Kafka has some partitions."""
        return {
            number: self._feeds[number].published for number in numbers if number in self._feeds
        }

    def saved(self, published: Mapping[int, int]) -> None:
        """Note that these positions are in the database now."""
        for number, position in published.items():
            feed = self._feeds.get(number)
            if feed is not None:
                feed.saved = max(feed.saved, position)

    @property
    def behind(self) -> int:
        """Return how many committed messages Kafka hasn't acknowledged."""
        return sum(feed.head - feed.published for feed in self._feeds.values())

    async def run(self) -> None:
        """Publish until cancelled; outlasts a broker or a database that is away."""
        pauses = Backoff(_FIRST_BACKOFF, _MAX_BACKOFF)
        while True:
            self._wake.clear()
            try:
                sent = await self._round()
                pauses.reset()
                if not sent:
                    await self._rest()
            except (DeskwireError, OSError) as error:
                get_logger().warning("publishing_failed", error=str(error), behind=self.behind)
                # No later message may overtake the one that failed.
                await self._producer.purge_and_rebuild()
                await pauses.pause()

    async def _rest(self) -> None:
        """Wait for a commit. Under load the writer notes how far Kafka is; after a second without commits this does."""
        try:
            async with asyncio.timeout(_QUIET_SECONDS):
                await self._wake.wait()
        except TimeoutError:
            await self._save()
            await self._wake.wait()

    async def finish(self, numbers: Iterable[int], seconds: float = 5.0) -> None:
        """Wait until Kafka has everything of some partitions, at most `seconds`."""
        feeds = [self._feeds[number] for number in numbers if number in self._feeds]
        deadline = asyncio.get_running_loop().time() + seconds
        while (
            any(feed.published < feed.head for feed in feeds)
            and asyncio.get_running_loop().time() < deadline
        ):
            await asyncio.sleep(0.01)

    async def _round(self) -> int:
        now = asyncio.get_running_loop().time
        await asyncio.sleep(self._pace.pause(now()))
        batch: list[Outgoing] = []
        passed = 0
        reached: list[tuple[_Feed, int]] = []
        share = max(1, _ROUND // max(1, len(self._feeds)))
        for feed in list(self._feeds.values()):
            if feed.published >= feed.head:
                continue
            found = await self._next(feed, share)
            if found:
                reached.append((feed, found[-1][0]))
                passed += len(found)
                batch += [record for _, record in found if record is not None]
        if not passed:
            return 0
        self._pace.began(now(), len(batch))
        if batch:
            await self._producer.send_batch(batch)
        for feed, position in reached:
            feed.published = position
            METRICS.partition_published.labels(str(feed.number)).set(position)
        return passed

    async def _next(self, feed: _Feed, limit: int) -> list[tuple[int, Outgoing | None]]:
        after, tail = feed.published, feed.tail
        while tail and tail[0][0] <= after:
            tail.popleft()
        if tail and tail[0][0] == after + 1:
            found: list[tuple[int, Outgoing | None]] = []
            for position, record in tail:
                # There is a hole, as the tail was full for a while.
                if position != after + 1 + len(found) or len(found) == limit:
                    break
                found.append((position, record))
            return found
        async with self._db.read() as c:
            rows = await messages.log(
                c, feed.number, after=after, up_to=feed.head, limit=min(limit, _LOG_CHUNK)
            )
        return [(each.position, None if each.imported else _outgoing_of(each)) for each in rows]

    async def _save(self) -> None:
        for feed in list(self._feeds.values()):
            position = feed.published
            if position != feed.saved:
                if not await self._db.run(partial(self._save_one, feed, position)):
                    # The term is over. Ownership finds that out, too.
                    if self._feeds.get(feed.number) is feed:
                        del self._feeds[feed.number]
                    continue
                feed.saved = max(feed.saved, position)

    @staticmethod
    async def _save_one(feed: _Feed, position: int, uow: UnitOfWork) -> bool:
        return await partitions.save_published(
            uow.connection, number=feed.number, term=feed.term, position=position
        )


def _outgoing_of(item: Message) -> Outgoing:
    return _outgoing(Stored.of(item, 0))


_FIXED: Final[Headers] = [
    ("ce_specversion", b"1.0"),
    ("content-type", b"application/protobuf"),
]


@lru_cache(4_096)
def _headers(kind: int, origin: str, tenant: str) -> Headers:
    return [
        *_FIXED,
        ("ce_type", codec.event_type(kind)),
        ("ce_source", origin.encode()),
        ("ce_tenantid", tenant.encode()),
    ]


@lru_cache(64)  # all messages of a group have the same time
def _time(micros: int) -> bytes:
    return from_micros(micros).isoformat().replace("+00:00", "Z").encode()


def _outgoing(stored: Stored) -> Outgoing:
    item = stored.message
    trace_id = trace_id_of(item.traceparent, item.message_id)
    value = codec.message_event(
        item, stored.encoded, stored.encoded_actor, stored.encoded_time, trace_id
    )
    headers: Headers = [
        *_headers(item.kind, item.origin, item.tenant),
        ("ce_id", item.message_id.encode()),
        ("ce_subject", item.conversation_id.encode()),
        ("ce_time", _time(item.created_at)),
    ]
    if item.traceparent:
        traceparent = item.traceparent
        if telemetry.sampled(traceparent):
            with telemetry.span("chat.publish", traceparent=traceparent):
                traceparent = telemetry.current_traceparent() or traceparent
        headers.append(("traceparent", traceparent.encode()))
    return topics.MESSAGES.name, item.conversation_id.encode(), value, headers
