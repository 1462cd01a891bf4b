"""The producer: idempotent; each batch is awaited as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Message as RdMessage
from confluent_kafka import Producer as RdProducer

from deskwire_common.errors import DeskwireError, ResourceExhausted, Unavailable
from deskwire_common.kafka.records import Outgoing, silent
from deskwire_common.metrics import METRICS

#: Largest value of a record, below the broker's default limit of 1 MiB.
MAX_RECORD_BYTES: Final = 900_000
#: How long librdkafka tries to deliver a record, in milliseconds, before its report is an error.
DELIVERY_TIMEOUT_MS: Final = 30_000
_QUEUE: Final = 200_000
#: A topic that isn't there is waited for so long, in milliseconds: its creation takes a moment to be known everywhere.
_PROPAGATION_MS: Final = 5_000
#: Seconds for the answers to what was sent before a record was refused.
_ANSWER_SECONDS: Final = 1.0
_BATCH_BYTES: Final = 256 * 1024
#: What is wrong with a record itself, or with a neighbour in the same request.
_OF_RECORD: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_TIMESTAMP,
    }
)
#: What is wrong with all records of a topic, until an operator mends it.
_OF_TOPIC: Final = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.POLICY_VIOLATION,
        KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001 - its public name has the underscore
        KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001 - the same
    }
)


TOPIC_REASONS: Final = frozenset(KafkaError(code).name() for code in _OF_TOPIC)
"""Kafka's names of the errors that concern a whole topic."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a record isn't on the broker."""

    reason: str
    """Kafka's name of the error: `MSG_SIZE_TOO_LARGE`."""
    text: str
    final: bool
    """Kafka won't take this record, or one that travelled with it, however often it is sent."""
    of_topic: bool
    """It takes none of the topic."""


class Undelivered(Unavailable):
    """Some records of a batch aren't on the broker; all others are."""

    def __init__(self, failures: Mapping[int, Failure]) -> None:
        """`failures`: by the record's index in the batch."""
        first = failures[min(failures)]
        super().__init__(f"Kafka did not take the record: {first.text}", retry_after=1.0)
        self.failures = failures


class Producer:
    """Idempotent, acks=all; records go in batches, each awaited as a whole.

    librdkafka reports failures only: every report takes the interpreter's lock, which it waits for while the process is
    busy. An empty queue shows that everything was delivered.
    """

    def __init__(
        self, bootstrap: str, client_id: str, *, linger_ms: float = 2.0, strict: bool = False
    ) -> None:
        """`strict`: one request at a time, so that nothing was sent after a record that isn't taken.

        Otherwise the broker takes what follows a refused record where that was the producer's first of the partition.
        """
        self._config: dict[str, Any] = {
            "bootstrap.servers": bootstrap,
            "client.id": client_id,
            "enable.idempotence": True,
            # After a record that isn't taken, nothing more is sent: no later one of its key overtakes it.
            "enable.gapless.guarantee": True,
            "max.in.flight.requests.per.connection": 1 if strict else 5,
            "acks": "all",
            "linger.ms": linger_ms,
            "compression.type": "lz4",
            "delivery.timeout.ms": DELIVERY_TIMEOUT_MS,
            "delivery.report.only.error": True,
            "topic.metadata.propagation.max.ms": _PROPAGATION_MS,
            "queue.buffering.max.messages": _QUEUE,
            "message.max.bytes": 1_000_000,
            # A topic's limit holds for a batch on the wire, not for a record.
            "batch.size": _BATCH_BYTES,
            "allow.auto.create.topics": True,
            "error_cb": silent,
            "log_level": 0,
        }
        self._bootstrap = bootstrap
        self._life: _Life | None = None
        self._ending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start; the broker need not answer yet."""
        self._life = _Life(self._config)

    def send_batch(self, records: Sequence[Outgoing]) -> asyncio.Future[None]:
        """Queue records in their order; the future is done when all are on the broker, or failed.

        It fails with Undelivered, which says which ones aren't there, or with another error when nobody knows:
        `purge_and_rebuild` in either case. When several batches are under way, none is done before all are.
        """
        batch = _Batch(records)
        try:
            if self._life is None:
                raise Unavailable("the Kafka producer is not running")
            self._life.take(batch)
        except (Unavailable, ResourceExhausted) as error:
            batch.future.set_exception(error)
        return batch.future

    async def purge_and_rebuild(self, *, alone: bool = False) -> None:
        """Forget the records that are queued or in flight, and start a new producer.

        `alone`: each record of it is a batch of its own on the wire, so that it is refused for itself only.
        """
        METRICS.kafka_producer_restarts.inc()
        await self._end(flush=0.0)
        if self._life is None:
            self._life = _Life({**self._config, "batch.num.messages": 1} if alone else self._config)

    async def close(self) -> None:
        """Wait up to five seconds for the queued records, then stop."""
        await self._end(flush=5.0)

    async def _end(self, *, flush: float) -> None:
        """End the present life. If a caller was cancelled here, the next one waits for the same end."""
        life, self._life = self._life, None
        if life is not None:
            self._ending = asyncio.create_task(asyncio.to_thread(life.end, flush))
        if self._ending is not None:
            await asyncio.shield(self._ending)


class _Life:
    """One librdkafka producer, the thread that watches its queue, and the batches that wait for an empty queue.

    They end together: otherwise the next life's thread would report this life's batches as delivered.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._rd: Any = RdProducer(config)
        self._failed_at = 0.0
        self._stop = threading.Event()
        self._batches: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="kafka-producer", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.is_set():
            batch = self._batches.get()
            while not self._stop.is_set() and self._left(0.1):
                pass
            if batch is not None:
                # Once stopped, `end` settles the batch.
                self._batches.put(batch) if self._stop.is_set() else batch.delivered()

    def _left(self, seconds: float) -> int:
        """Wait for the queue to get empty; return how many records are left."""
        if not self._failed_at:
            try:
                return int(self._rd.flush(seconds))
            except KafkaException:
                # Said once: a record wasn't taken, so this producer sends no other.
                self._failed_at = time.monotonic()
        # Answers to those on their way tell whether the broker has them; it refuses what follows the missing one.
        late = time.monotonic() - self._failed_at > _ANSWER_SECONDS
        self._rd.purge(in_queue=True, in_flight=late, blocking=True)
        self._rd.poll(seconds)
        return len(self._rd)

    def take(self, batch: _Batch) -> None:
        """Queue the records of a batch. Raises Unavailable, and ResourceExhausted when the queue is full."""
        for index, (topic, key, value, headers) in enumerate(batch.records):
            try:
                self._rd.produce(
                    topic, value=value, key=key, headers=headers, on_delivery=batch.failed
                )
            except BufferError:
                raise ResourceExhausted(
                    "the Kafka producer's queue is full; try again", retry_after=0.5
                ) from None
            except KafkaException as error:
                failure = _failure(error.args[0])
                if not failure.final:
                    raise Unavailable(f"Kafka: {failure.text}") from error
                batch.stopped(index, failure)
                break
        self._batches.put(batch)

    def end(self, flush: float) -> None:
        """Wait `flush` seconds for the queued records, and forget the rest. Blocks."""
        delivered = bool(flush) and self._left(flush) == 0
        self._stop.set()
        self._batches.put(None)
        self._thread.join()
        self._rd.purge(in_queue=True, in_flight=True, blocking=True)
        self._rd.poll(0)
        while not self._batches.empty():
            batch = self._batches.get()
            if batch is not None:
                batch.delivered() if delivered else batch.forgotten()


class _Batch:
    """Records whose deliveries are awaited together. Other threads than the event loop's call its methods."""

    __slots__ = ("_began", "_failures", "_indexes", "_loop", "future", "records")

    def __init__(self, records: Sequence[Outgoing]) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self._loop.create_future()
        self.records = records
        self._failures: dict[int, Failure] = {}
        self._indexes: dict[Any, list[int]] = {}
        self._began = self._loop.time()

    def delivered(self) -> None:
        """All are on the broker, but for those whose failure was reported before."""
        self._tell(Undelivered(self._failures) if self._failures else None)

    def failed(self, error: KafkaError | None, message: RdMessage) -> None:
        """A record wasn't delivered."""
        if error is None:
            return
        METRICS.kafka_produce_failures.labels(message.topic()).inc()
        # Failures are rare, so a record costs nothing before one.
        if not self._indexes:
            for index in reversed(range(len(self.records))):
                self._indexes.setdefault(self.records[index][:3], []).append(index)
        same = self._indexes[message.topic(), message.key(), message.value()]
        self._failures[same.pop()] = _failure(error)

    def stopped(self, index: int, failure: Failure) -> None:
        """A record was refused at once, and those after it weren't sent."""
        METRICS.kafka_produce_failures.labels(self.records[index][0]).inc()
        for later in range(index + 1, len(self.records)):
            self._failures[later] = _NOT_SENT
        self._failures[index] = failure

    def forgotten(self) -> None:
        """The producer has ended, and nobody knows whether they were delivered."""
        self._tell(Unavailable("the Kafka producer was stopped"))

    def _tell(self, error: DeskwireError | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._settle, error)

    def _settle(self, error: DeskwireError | None) -> None:
        if self.future.done():
            return
        if error is None:
            METRICS.kafka_produce_seconds.observe(self._loop.time() - self._began)
            self.future.set_result(None)
        else:
            self.future.set_exception(error)


_NOT_SENT: Final = Failure("", "an earlier record was refused", final=False, of_topic=False)


def _failure(error: KafkaError) -> Failure:
    code = error.code()
    return Failure(
        error.name(),
        error.str(),
        final=code in _OF_RECORD or code in _OF_TOPIC,
        of_topic=code in _OF_TOPIC,
    )
