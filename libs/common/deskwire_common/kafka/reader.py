"""A reader without a group."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Literal

from confluent_kafka import Consumer as RdConsumer
from confluent_kafka import KafkaException, TopicPartition

from deskwire_common.errors import Unavailable
from deskwire_common.kafka.records import Place, Record, good, patiently, silent
from deskwire_common.kafka.topics import partitions_of


class Reader:
    """Reads topics without a group: every partition from an offset that the caller chooses."""

    def __init__(
        self,
        bootstrap: str,
        topics: Sequence[str],
        *,
        start: Literal["earliest", "latest"] | datetime | Mapping[Place, int] = "earliest",
        idle_ms: int = 50,
    ) -> None:
        """`start`: the ends of the topics, a time, or the next offset per partition (earliest for the others).

        While nothing comes, the broker is asked again every `idle_ms`; what comes is told at once all the same.
        """
        self._bootstrap = bootstrap
        self._topics = list(topics)
        self._start = start
        self._idle_ms = idle_ms
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kafka-reader")
        self._rd: RdConsumer | None = None
        self.positions: dict[Place, int] = {}
        """The next offset per partition that `read` has not returned."""
        self.oldest: dict[Place, int] = {}
        """The oldest offset per partition that was kept at the start."""
        self.ends: dict[Place, int] = {}
        """The offset per partition that the next record was to have at the start."""

    async def start(self) -> None:
        """Find the partitions and places.

        Raises Unavailable when the broker doesn't answer within ten seconds, or a topic isn't there by then.
        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self._open)

    def _open(self) -> None:
        rd = RdConsumer(
            {
                "bootstrap.servers": self._bootstrap,
                "group.id": "deskwire-reader",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": self._idle_ms,
                "queued.max.messages.kbytes": 16_384,
                "error_cb": silent,
                "log_level": 0,
            }
        )
        self._rd = rd
        try:
            found = [
                TopicPartition(topic, partition)
                for topic in self._topics
                for partition in partitions_of(rd, topic)
            ]
            for place in found:
                low, high = patiently(partial(rd.get_watermark_offsets, place, timeout=10))
                self.oldest[place.topic, place.partition] = low
                self.ends[place.topic, place.partition] = high
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
        """Return the records that are there, waiting up to `timeout` seconds for the first; empty when none came."""
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
        records = good([*first, *self._rd.consume(max_records, 0)])
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
