"""A member of a consumer group."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from confluent_kafka import Consumer as RdConsumer
from confluent_kafka import KafkaException, TopicPartition

from deskwire_common.kafka.records import Record, good, silent
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS


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
            "error_cb": silent,
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

        An error of the handler ends the run, and the next run gets the same records again.
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._open)
            while True:
                records = await loop.run_in_executor(self._thread, self._poll, max_records)
                if not records:
                    continue
                await handler(records)
                await loop.run_in_executor(self._thread, self._commit, records)
                METRICS.kafka_consumed.labels(self.group, "done").inc(len(records))
        finally:
            await self.close()

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
        return [] if self._rd is None else good(self._rd.consume(max_records, 0.1))

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
            # The partition was revoked meanwhile: its next owner handles them again, which at-least-once allows.
            get_logger().warning("offsets_not_committed", group=self.group, error=str(error))
