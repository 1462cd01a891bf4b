"""Kafka: a thin asyncio face of confluent-kafka's plain Producer and Consumer.

librdkafka does the work on its own threads. Waiting for it blocks, so each producer and consumer has its own thread,
and it hands over to the event loop what comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal

from confluent_kafka import Consumer as RdConsumer
from confluent_kafka import (
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka import Message as RdMessage
from confluent_kafka import Producer as RdProducer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from deskwire_common import topics as registry
from deskwire_common.errors import DeskwireError, ResourceExhausted, Unavailable
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_common.topics import Topic

Headers = list[tuple[str, bytes]]
Outgoing = tuple[str, bytes, bytes, Headers]
"""Topic, key, value, headers."""

#: Largest value of a record, below the broker's default limit of 1 MiB.
MAX_RECORD_BYTES: Final = 900_000
#: How long librdkafka tries to deliver a record, in milliseconds, before its report is an error.
DELIVERY_TIMEOUT_MS: Final = 30_000
_DEVELOPMENT: Final = (
    "mockCluster"  # how librdkafka's mock cluster, the development broker, begins its id
)
_QUEUE: Final = 200_000
_NOT_YET: Final = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        # A group's coordinator of a broker that has just started.
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001 - its public name has the underscore
    }
)
_OUT_OF_RANGE: Final = frozenset(
    {
        KafkaError.OFFSET_OUT_OF_RANGE,
        # What librdkafka makes of it where auto.offset.reset is "error"; it fetches no more of that partition.
        KafkaError._AUTO_OFFSET_RESET,  # noqa: SLF001 - its public name has the underscore
    }
)


class Rejected(Exception):
    """Raised by a handler: not now. The same records come again after `retry_after` seconds."""

    def __init__(self, reason: str, *, retry_after: float = 1.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Record:
    """One record; `timestamp` in milliseconds since 1970 UTC."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes | None
    headers: Headers
    timestamp: int


def _silent(_error: KafkaError) -> None:
    """Connection errors are seen where they matter: in reports and time-outs."""


class Producer:
    """Idempotent, acks=all; records go in batches, each awaited as a whole.

    librdkafka reports failures only: every report takes the interpreter's lock, for which it waits while there is much
    to do. That everything was delivered shows in its queue, which is empty then.
    """

    def __init__(self, bootstrap: str, client_id: str, *, linger_ms: float = 2.0) -> None:
        self._config: dict[str, Any] = {
            "bootstrap.servers": bootstrap,
            "client.id": client_id,
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": linger_ms,
            "compression.type": "lz4",
            "delivery.timeout.ms": DELIVERY_TIMEOUT_MS,
            "delivery.report.only.error": True,
            "queue.buffering.max.messages": _QUEUE,
            "message.max.bytes": 1_000_000,
            "allow.auto.create.topics": True,
            "error_cb": _silent,
            "log_level": 0,
        }
        self._bootstrap = bootstrap
        self._rd: RdProducer | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._batches: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()

    async def start(self) -> None:
        """Begin; the broker need not be there yet."""
        self._begin()

    def _begin(self) -> None:
        self._rd = RdProducer(self._config)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._work, args=(self._rd, self._stop), name="kafka-producer", daemon=True
        )
        self._thread.start()

    def _work(self, rd: RdProducer, stop: threading.Event) -> None:
        while not stop.is_set():
            batch = self._batches.get()
            while not stop.is_set() and rd.flush(0.1):
                pass
            if batch is not None:
                # At the end it is for _end to say how it went.
                self._batches.put(batch) if stop.is_set() else batch.delivered()

    def _produce(
        self,
        records: Iterable[Outgoing],
        failed: Callable[[KafkaError | None, RdMessage], None],
    ) -> None:
        rd: Any = self._rd
        if rd is None:
            raise Unavailable("the Kafka producer is not running")
        try:
            for topic, key, value, headers in records:
                rd.produce(topic, value=value, key=key, headers=headers, on_delivery=failed)
        except BufferError:
            raise ResourceExhausted(
                "the Kafka producer's queue is full; try again", retry_after=0.5
            ) from None
        except KafkaException as error:
            raise Unavailable(f"Kafka: {error}") from error

    def send_batch(self, records: Sequence[Outgoing]) -> asyncio.Future[None]:
        """Queue records in their order; the future is done when all are on the broker, or one failed.

        When it fails, some of the later ones may be on the broker: `purge_and_rebuild` and start again. Of batches that
        are under way together none is done before all are.
        """
        batch = _Batch()
        try:
            self._produce(records, batch.failed)
        except (Unavailable, ResourceExhausted) as error:
            batch.future.set_exception(error)
        else:
            self._batches.put(batch)
        return batch.future

    async def purge_and_rebuild(self) -> None:
        """Forget what is queued or in flight, and begin with a new producer."""
        await self._end(flush=0.0)
        self._begin()

    async def close(self) -> None:
        """Wait up to five seconds for what is queued, then stop."""
        await self._end(flush=5.0)

    async def _end(self, *, flush: float) -> None:
        rd, thread = self._rd, self._thread
        self._rd = None
        if rd is None or thread is None:
            return

        def end() -> None:
            delivered = bool(flush) and rd.flush(flush) == 0
            self._stop.set()
            self._batches.put(None)
            thread.join()
            rd.purge(in_queue=True, in_flight=True, blocking=True)
            rd.poll(0)
            while not self._batches.empty():
                batch = self._batches.get()
                if batch is not None:
                    batch.delivered() if delivered else batch.forgotten()

        await asyncio.to_thread(end)


class _Batch:
    """Records whose deliveries are awaited together. Its methods are for other threads than the event loop's."""

    __slots__ = ("_loop", "future")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self._loop.create_future()

    def delivered(self) -> None:
        """All are on the broker, or a failure was told before."""
        self._tell(None)

    def failed(self, error: KafkaError | None, message: RdMessage) -> None:
        """A record wasn't delivered."""
        if error is not None:
            METRICS.kafka_produce_failures.labels(message.topic()).inc()
            self._tell(_unavailable(error))

    def forgotten(self) -> None:
        """The producer has ended, and nobody knows."""
        self._tell(Unavailable("the Kafka producer was stopped"))

    def _tell(self, error: DeskwireError | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._settle, error)

    def _settle(self, error: DeskwireError | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(error)


def _unavailable(error: KafkaError) -> Unavailable:
    return Unavailable(f"Kafka did not take the record: {error.str()}", retry_after=1.0)


def _record(message: RdMessage) -> Record:
    key: Any = message.key()
    headers: Any = message.headers()
    return Record(
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        key=key.encode() if isinstance(key, str) else key or b"",
        value=_bytes(message.value()),
        headers=[(name, _bytes(value) or b"") for name, value in headers] if headers else [],
        timestamp=message.timestamp()[1],
    )


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def patiently(ask: Callable[[], Any]) -> Any:
    """Ask again while a topic or a group that was just made has no leader yet, for ten seconds at the most."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return ask()
        except KafkaException as error:
            if (
                not error.args[0].retriable() and error.args[0].code() not in _NOT_YET
            ) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _good(messages: Iterable[RdMessage]) -> list[Record]:
    records = []
    for message in messages:
        error = message.error()
        if error is None:
            records.append(_record(message))
        elif error.fatal() or error.code() in _OUT_OF_RANGE:
            raise Unavailable(f"Kafka: {error.str()}")
    return records


class Consumer:
    """One member of a consumer group. Offsets are committed after the handler returned, never before."""

    def __init__(
        self,
        bootstrap: str,
        group: str,
        topics: Sequence[str],
        *,
        start: Literal["earliest", "latest"] = "earliest",
        client_id: str = "",
        protocol: Literal["consumer", "classic"] = "consumer",
    ) -> None:
        """Topics may be patterns (`^…`). `classic` is for brokers without KIP-848, such as the development broker."""
        self.group = group
        self._topics = list(topics)
        self._config: dict[str, Any] = {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "group.protocol": protocol,
            "client.id": client_id or group,
            "auto.offset.reset": start,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "allow.auto.create.topics": True,
            "topic.metadata.refresh.interval.ms": 5_000,
            "fetch.wait.max.ms": 100,
            "error_cb": _silent,
            "log_level": 0,
        }
        if protocol == "classic":
            self._config["session.timeout.ms"] = 10_000
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"kafka-{group}")
        self._rd: RdConsumer | None = None

    async def run(
        self, handler: Callable[[Sequence[Record]], Awaitable[None]], *, max_records: int = 500
    ) -> None:
        """Handle records until cancelled. The handler's records are in order per partition.

        It returns: they are done. It raises Rejected: the same ones come again. Anything else ends the run.
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._open)
            while True:
                records = await loop.run_in_executor(self._thread, self._poll, max_records)
                if not records:
                    continue
                await self._handle(handler, records)
                await loop.run_in_executor(self._thread, self._commit, records)
                METRICS.kafka_consumed.labels(self.group, "done").inc(len(records))
        finally:
            await self.close()

    async def _handle(
        self, handler: Callable[[Sequence[Record]], Awaitable[None]], records: list[Record]
    ) -> None:
        while True:
            try:
                await handler(records)
            except Rejected as rejected:
                METRICS.kafka_consumed.labels(self.group, "rejected").inc()
                get_logger().info("records_rejected", group=self.group, reason=str(rejected))
                await asyncio.sleep(rejected.retry_after)
            else:
                return

    async def close(self) -> None:
        """Leave the group."""
        rd, self._rd = self._rd, None
        if rd is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, rd.close)
        self._thread.shutdown(wait=False)

    def _open(self) -> None:
        self._rd = RdConsumer(self._config)
        self._rd.subscribe(self._topics)

    def _poll(self, max_records: int) -> list[Record]:
        return [] if self._rd is None else _good(self._rd.consume(max_records, 0.1))

    def _commit(self, records: list[Record]) -> None:
        if self._rd is None:
            return
        after: dict[tuple[str, int], int] = {}
        for record in records:
            after[record.topic, record.partition] = record.offset + 1
        try:
            self._rd.commit(
                offsets=[TopicPartition(*place, offset) for place, offset in after.items()],
                asynchronous=False,
            )
        except KafkaException as error:
            # Revoked meanwhile: the next owner handles them again, which at-least-once allows.
            get_logger().warning("offsets_not_committed", group=self.group, error=str(error))


Place = tuple[str, int]
"""Topic and partition."""


class Reader:
    """Reads topics without a group: every partition from a place of the caller's choice."""

    def __init__(
        self,
        bootstrap: str,
        topics: Sequence[str],
        *,
        start: Literal["earliest", "latest"] | datetime | Mapping[Place, int] = "earliest",
    ) -> None:
        """`start`: the ends of the topics, a time, or the next offset per partition (earliest for the others)."""
        self._bootstrap = bootstrap
        self._topics = list(topics)
        self._start = start
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kafka-reader")
        self._rd: RdConsumer | None = None
        self.positions: dict[Place, int] = {}
        """The next offset per partition that `read` has not returned."""
        self.oldest: dict[Place, int] = {}
        """The oldest offset per partition that was kept at the start."""

    async def start(self) -> None:
        """Find the partitions and places. Raises Unavailable when the broker doesn't answer within ten seconds."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    def _open(self) -> None:
        rd = RdConsumer(
            {
                "bootstrap.servers": self._bootstrap,
                "group.id": "deskwire-reader",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": 50,
                "queued.max.messages.kbytes": 16_384,
                "error_cb": _silent,
                "log_level": 0,
            }
        )
        self._rd = rd
        try:
            # Asked for by name, so that topics nobody wrote to yet are made.
            found = [
                TopicPartition(topic, partition)
                for topic in self._topics
                for partition in patiently(partial(rd.list_topics, topic, timeout=10))
                .topics[topic]
                .partitions
            ]
            for place in found:
                low, high = patiently(partial(rd.get_watermark_offsets, place, timeout=10))
                self.oldest[place.topic, place.partition] = low
                self.positions[place.topic, place.partition] = self._place(place, low, high)
            if isinstance(self._start, datetime):
                self._seek_time(rd, found, self._start)
        except KafkaException as error:
            raise Unavailable(f"Kafka doesn't answer: {error}") from error
        rd.assign([TopicPartition(*place, offset) for place, offset in self.positions.items()])

    def _place(self, place: TopicPartition, low: int, high: int) -> int:
        if self._start == "latest":
            return high
        if isinstance(self._start, Mapping):
            return self._start.get((place.topic, place.partition), low)
        return low

    def _seek_time(self, rd: RdConsumer, found: list[TopicPartition], since: datetime) -> None:
        millis = int(since.timestamp() * 1000)
        asked = [TopicPartition(each.topic, each.partition, millis) for each in found]
        for place in rd.offsets_for_times(asked, timeout=10):
            offset = place.offset
            if offset < 0:
                offset = rd.get_watermark_offsets(place, timeout=10)[1]
            self.positions[place.topic, place.partition] = offset

    async def read(self, max_records: int = 500, timeout: float = 0.5) -> list[Record]:
        """Return what is there, waiting up to `timeout` seconds for the first; empty when there was nothing."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._read, max_records, timeout
        )

    def _read(self, max_records: int, timeout: float) -> list[Record]:
        if self._rd is None:
            raise Unavailable("the reader is closed")
        # `consume` waits for all of max_records; one first, then what has already come.
        first = self._rd.consume(1, timeout)
        if not first:
            return []
        records = _good([*first, *self._rd.consume(max_records, 0)])
        for record in records:
            self.positions[record.topic, record.partition] = record.offset + 1
        return records

    async def end_offsets(self) -> dict[Place, int]:
        """Return the offset per partition that the next record will have."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._ends)

    def _ends(self) -> dict[Place, int]:
        if self._rd is None:
            raise Unavailable("the reader is closed")
        try:
            return {
                place: self._rd.get_watermark_offsets(TopicPartition(*place), timeout=10)[1]
                for place in self.positions
            }
        except KafkaException as error:
            raise Unavailable(f"Kafka doesn't answer: {error}") from error

    async def close(self) -> None:
        """Stop."""
        rd, self._rd = self._rd, None
        if rd is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, rd.close)
        self._thread.shutdown(wait=False)


def _admin(bootstrap: str) -> AdminClient:
    settings: Any = {"bootstrap.servers": bootstrap, "error_cb": _silent, "log_level": 0}
    return AdminClient(settings)


async def cluster_id(bootstrap: str, timeout: float = 10.0) -> str:
    """Return the cluster's id. Raises Unavailable when the broker doesn't answer within `timeout` seconds."""

    def ask() -> str:
        try:
            return str(_admin(bootstrap).list_topics(timeout=timeout).cluster_id)
        except KafkaException as error:
            raise Unavailable(f"Kafka doesn't answer at {bootstrap}: {error}") from error

    return await asyncio.to_thread(ask)


async def ensure_topics(
    bootstrap: str, wanted: Iterable[Topic] | None = None, *, timeout: float = 15.0
) -> list[str]:
    """Create those topics of the contract (all fixed ones by default) that are missing; return their names.

    Replication is the broker's default. The development broker has no admin interface, and makes topics at their
    first use. Raises Unavailable when the broker doesn't answer.
    """
    chosen = list(registry.fixed_topics() if wanted is None else wanted)

    def create() -> list[str]:
        admin = _admin(bootstrap)
        try:
            cluster = admin.list_topics(timeout=timeout)
        except KafkaException as error:
            raise Unavailable(f"Kafka doesn't answer at {bootstrap}: {error}") from error
        if str(cluster.cluster_id).startswith(_DEVELOPMENT):
            return []
        missing = [topic for topic in chosen if topic.name not in cluster.topics]
        if not missing:
            return []
        made = admin.create_topics(
            [
                NewTopic(
                    topic.name,
                    num_partitions=topic.partitions,
                    replication_factor=-1,
                    config=topic.config(),
                )
                for topic in missing
            ],
            operation_timeout=timeout,
            request_timeout=timeout,
        )
        for name, future in made.items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise Unavailable(f"can't create topic {name}: {error}") from error
        return [topic.name for topic in missing]

    return await asyncio.to_thread(create)


def by_partition(records: Iterable[Record]) -> dict[Place, list[Record]]:
    """Group records by their partition, in order."""
    groups: dict[Place, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.topic, record.partition].append(record)
    return groups
