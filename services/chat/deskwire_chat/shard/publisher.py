"""From the committed log to Kafka: per partition by position, beside the path of messages and never in it.

Position order is commit order (one writer per partition), so "everything up to here is on Kafka" is one number per
partition. What was just committed is taken from memory; what is older, or didn't fit, is read from the log.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from deskwire_chat.domain import Message, partition_of
from deskwire_chat.events import trace_id_of
from deskwire_chat.shard import codec
from deskwire_chat.shard.commands import NotOwner, Stored
from deskwire_chat.store import messages, partitions
from deskwire_chat.store.partitions import Partition
from deskwire_common import telemetry, topics
from deskwire_common.clock import from_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import DeskwireError
from deskwire_common.kafka import Headers, Outgoing, Producer
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS

_ROUND: Final = 4_000
"""Records in flight at the most."""
_LOG_CHUNK: Final = 500
_TAIL: Final = 20_000
"""Encoded messages kept in memory per partition while Kafka is behind."""
_QUIET_SECONDS: Final = 1.0
_LINGER: Final = 0.005
_MAX_BACKOFF: Final = 5.0


class Publisher:
    """Publishes the log of all partitions that this process owns. The producer is its own."""

    def __init__(self, db: Database, producer: Producer) -> None:
        self._db = db
        self._producer = producer
        self._terms: dict[int, int] = {}
        self._heads: dict[int, int] = {}
        self._published: dict[int, int] = {}
        self._saved: dict[int, int] = {}
        self._tails: dict[int, deque[tuple[int, Outgoing]]] = {}
        self._wake = asyncio.Event()

    def own(self, partitions: Sequence[Partition]) -> None:
        """Begin where the partitions' last owner stopped."""
        self._terms = {each.id: each.term for each in partitions}
        self._heads = {each.id: each.head for each in partitions}
        self._published = {each.id: each.published for each in partitions}
        self._saved = dict(self._published)
        self._tails = {each.id: deque() for each in partitions}
        self._wake.set()

    def committed(self, stored: Sequence[Stored]) -> None:
        """Take what was just committed (the writer's Log)."""
        for each in stored:
            number = partition_of(each.message.conversation_id)
            self._heads[number] = each.message.position
            tail = self._tails[number]
            if len(tail) < _TAIL:
                tail.append((each.message.position, _outgoing(each)))
        self._wake.set()

    def published(self, numbers: Iterable[int]) -> dict[int, int]:
        """How far Kafka has some partitions."""
        return {number: self._published[number] for number in numbers}

    def saved(self, published: Mapping[int, int]) -> None:
        """The database knows this now."""
        for number, position in published.items():
            self._saved[number] = max(self._saved[number], position)

    @property
    def behind(self) -> int:
        """How many committed messages Kafka hasn't acknowledged."""
        return sum(self._heads[number] - self._published[number] for number in self._heads)

    async def run(self) -> None:
        """Publish until cancelled; outlasts a broker or a database that is away. Raises NotOwner."""
        failures = 0
        while True:
            self._wake.clear()
            try:
                sent = await self._round()
                failures = 0
                if not sent:
                    await self._rest()
            except NotOwner:
                raise
            except (DeskwireError, OSError) as error:
                failures += 1
                get_logger().warning("publishing_failed", error=str(error), behind=self.behind)
                # No later message may overtake the one that failed.
                await self._producer.purge_and_rebuild()
                await asyncio.sleep(min(0.1 * 2**failures, _MAX_BACKOFF))

    async def _rest(self) -> None:
        """Wait for a commit. Under load the writer notes how far Kafka is; after a second of quiet this does."""
        try:
            async with asyncio.timeout(_QUIET_SECONDS):
                await self._wake.wait()
        except TimeoutError:
            await self._save()
            await self._wake.wait()
        await asyncio.sleep(_LINGER)

    async def drain(self, seconds: float = 5.0) -> None:
        """Wait until Kafka has everything, for a while, and note how far it got."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self.behind and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        await self._save()

    async def _round(self) -> int:
        batch: list[Outgoing] = []
        reached: dict[int, int] = {}
        share = max(1, _ROUND // len(self._heads))
        for number, head in self._heads.items():
            after = self._published[number]
            if after >= head:
                continue
            found = await self._next(number, after, head, share)
            if found:
                reached[number] = found[-1][0]
                batch += [record for _, record in found]
        if not batch:
            return 0
        await self._producer.send_batch(batch)
        self._published.update(reached)
        for number, position in reached.items():
            METRICS.partition_published.labels(str(number)).set(position)
        return len(batch)

    async def _next(
        self, number: int, after: int, head: int, limit: int
    ) -> list[tuple[int, Outgoing]]:
        tail = self._tails[number]
        while tail and tail[0][0] <= after:
            tail.popleft()
        if tail and tail[0][0] == after + 1:
            found: list[tuple[int, Outgoing]] = []
            for position, record in tail:
                # A hole: the tail was full for a while.
                if position != after + 1 + len(found) or len(found) == limit:
                    break
                found.append((position, record))
            return found
        async with self._db.read() as c:
            rows = await messages.log(
                c, number, after=after, up_to=head, limit=min(limit, _LOG_CHUNK)
            )
        return [(each.position, _outgoing_of(each)) for each in rows]

    async def _save(self) -> None:
        for number, position in self._published.items():
            if position != self._saved[number]:
                if not await self._db.run(partial(self._save_one, number, position)):
                    raise NotOwner("another process has taken over")
                self.saved({number: position})

    async def _save_one(self, number: int, position: int, uow: UnitOfWork) -> bool:
        return await partitions.save_published(
            uow.connection, number=number, term=self._terms[number], position=position
        )


def _outgoing_of(item: Message) -> Outgoing:
    return _outgoing(Stored.of(item, 0))


_FIXED: Final[Headers] = [
    ("ce_specversion", b"1.0"),
    ("ce_type", b"message_sent"),
    ("content-type", b"application/protobuf"),
]


def _outgoing(stored: Stored) -> Outgoing:
    item = stored.message
    trace_id = trace_id_of(item.traceparent, item.message_id)
    value = codec.message_event(
        item, stored.encoded, stored.encoded_actor, stored.encoded_time, trace_id
    )
    headers: Headers = [
        *_FIXED,
        ("ce_id", item.message_id.encode()),
        ("ce_source", item.origin.encode()),
        ("ce_subject", item.conversation_id.encode()),
        ("ce_time", from_micros(item.created_at).isoformat().replace("+00:00", "Z").encode()),
        ("ce_tenantid", item.tenant.encode()),
    ]
    if item.traceparent:
        traceparent = item.traceparent
        if telemetry.sampled(traceparent):
            with telemetry.span("chat.publish", traceparent=traceparent):
                traceparent = telemetry.current_traceparent() or traceparent
        headers.append(("traceparent", traceparent.encode()))
    return topics.MESSAGES.name, item.conversation_id.encode(), value, headers
