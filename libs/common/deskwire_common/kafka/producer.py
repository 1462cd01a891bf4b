"""The producer: idempotent; each batch is awaited as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Iterable, Sequence
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


class Producer:
    """Idempotent, acks=all; records go in batches, each awaited as a whole.

    librdkafka reports failures only: every report takes the interpreter's lock, which it waits for while the process is
    busy. An empty queue shows that everything was delivered.
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
        """Queue records in their order; the future is done when all are on the broker, or one failed.

        When it fails, some of the later ones may be on the broker: `purge_and_rebuild` and start again. When several
        batches are under way, none is done before all are.
        """
        batch = _Batch()
        try:
            if self._life is None:
                raise Unavailable("the Kafka producer is not running")
            self._life.take(records, batch)
        except (Unavailable, ResourceExhausted) as error:
            batch.future.set_exception(error)
        return batch.future

    async def purge_and_rebuild(self) -> None:
        """Forget the records that are queued or in flight, and start a new producer."""
        METRICS.kafka_producer_restarts.inc()
        await self._end(flush=0.0)
        if self._life is None:
            self._life = _Life(self._config)

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
        self._stop = threading.Event()
        self._batches: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="kafka-producer", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.is_set():
            batch = self._batches.get()
            while not self._stop.is_set() and self._rd.flush(0.1):
                pass
            if batch is not None:
                # Once stopped, `end` settles the batch.
                self._batches.put(batch) if self._stop.is_set() else batch.delivered()

    def take(self, records: Iterable[Outgoing], batch: _Batch) -> None:
        """Queue the records of a batch. Raises Unavailable, and ResourceExhausted when the queue is full."""
        try:
            for topic, key, value, headers in records:
                self._rd.produce(
                    topic, value=value, key=key, headers=headers, on_delivery=batch.failed
                )
        except BufferError:
            raise ResourceExhausted(
                "the Kafka producer's queue is full; try again", retry_after=0.5
            ) from None
        except KafkaException as error:
            raise Unavailable(f"Kafka: {error}") from error
        self._batches.put(batch)

    def end(self, flush: float) -> None:
        """Wait `flush` seconds for the queued records, and forget the rest. Blocks."""
        delivered = bool(flush) and self._rd.flush(flush) == 0
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

    __slots__ = ("_began", "_loop", "future")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self._loop.create_future()
        self._began = self._loop.time()

    def delivered(self) -> None:
        """All are on the broker, or a failure was reported before."""
        self._tell(None)

    def failed(self, error: KafkaError | None, message: RdMessage) -> None:
        """A record wasn't delivered."""
        if error is not None:
            METRICS.kafka_produce_failures.labels(message.topic()).inc()
            self._tell(_unavailable(error))

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


def _unavailable(error: KafkaError) -> Unavailable:
    return Unavailable(f"Kafka did not take the record: {error.str()}", retry_after=1.0)
