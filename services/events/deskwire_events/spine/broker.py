"""What the spine asks Kafka: partitions, offsets and records. Each has a thread of its own, as librdkafka blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

from confluent_kafka import Consumer as RdConsumer
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka import Message as RdMessage
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin import OffsetSpec as _OffsetSpec  # type: ignore[attr-defined]

from deskwire_common.errors import Unavailable
from deskwire_common.kafka import patiently, split
from deskwire_common.kafka.records import silent
from deskwire_events.spine.carried import Carried

Place: TypeAlias = tuple[str, int]
"""Topic and partition."""
T = TypeVar("T")

# Without types, like much of the library.
_OFFSETS: Final[Any] = _OffsetSpec
#: Seconds that Kafka may take to answer.
_TIMEOUT: Final = 10.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is kept of a partition: from `low` up to before `high`."""

    low: int
    high: int


class Tap:
    """One Kafka consumer without a group, on a thread of its own. Its methods raise Unavailable."""

    def __init__(self, bootstrap: str, name: str, *, prefetch_kb: int = 16_384) -> None:
        self._config: dict[str, Any] = {
            "bootstrap.servers": bootstrap,
            "group.id": "deskwire-hub",
            "client.id": name,
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 50,
            "queued.max.messages.kbytes": prefetch_kb,
            "error_cb": silent,
            "log_level": 0,
        }
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._rd: RdConsumer | None = None

    async def assign(self, places: Mapping[Place, int]) -> None:
        """Read these partitions from these offsets on, and no others."""
        await self._call(lambda rd: rd.assign(_partitions(places)))

    async def add(self, places: Mapping[Place, int]) -> None:
        """Read these too."""
        await self._call(lambda rd: rd.incremental_assign(_partitions(places)))

    async def drop(self, places: Collection[Place]) -> None:
        """Read these no more."""
        await self._call(
            lambda rd: rd.incremental_unassign([TopicPartition(*each) for each in places])
        )

    async def poll(self, count: int, seconds: float) -> tuple[list[Carried], list[Place]]:
        """Up to `count` records, waiting `seconds` for the first; and the partitions whose offset isn't kept."""

        def ask(rd: RdConsumer) -> tuple[list[Carried], list[Place]]:
            # `consume` waits for all that were asked for: one first, then what has come with it.
            first = rd.consume(1, seconds)
            if not first:
                return [], []
            return split([*first, *rd.consume(count, 0)], _carried)

        return await self._call(ask)

    async def close(self) -> None:
        """Stop."""
        rd, self._rd = self._rd, None
        if rd is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, rd.close)
        self._thread.shutdown(wait=False)

    async def _call(self, ask: Callable[[RdConsumer], T]) -> T:
        def work() -> T:
            if self._rd is None:
                self._rd = RdConsumer(self._config)
            try:
                return ask(self._rd)
            except KafkaException as error:
                raise Unavailable(f"Kafka doesn't answer: {error}", retry_after=1.0) from error

        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class Broker:
    """The cluster: its id, its topics, and what is kept of them. Its methods raise Unavailable."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kafka-offsets")
        self._admin: AdminClient | None = None
        self._cluster = ""

    async def cluster(self) -> str:
        """The cluster's id."""
        if not self._cluster:
            self._cluster = str((await self._metadata(None)).cluster_id)
        return self._cluster

    async def topics(self) -> list[str]:
        """The names of all topics."""
        return list((await self._metadata(None)).topics)

    async def partitions(self, topics: Iterable[str]) -> list[Place]:
        """All partitions of topics, asked for by name, so that a broker that does so makes them."""
        wanted = list(topics)

        def ask(admin: AdminClient) -> list[Place]:
            known = admin.list_topics(timeout=_TIMEOUT).topics
            found: list[Place] = []
            for topic in wanted:
                there = known.get(topic)
                if there is None or not there.partitions:
                    one = partial(admin.list_topics, topic, timeout=_TIMEOUT)
                    there = patiently(one).topics[topic]
                found += [(topic, partition) for partition in there.partitions]
            return found

        return await self._call(ask)

    async def bounds(self, places: Collection[Place]) -> dict[Place, Bounds]:
        """What is kept of partitions."""
        lows = await self._offsets(places, _OFFSETS.earliest())
        highs = await self._offsets(places, _OFFSETS.latest())
        return {place: Bounds(lows[place], highs[place]) for place in places}

    async def at(self, places: Collection[Place], millis: int) -> dict[Place, int]:
        """The first offset of each partition at or after a time; its end where there is none."""
        found = await self._offsets(places, _OFFSETS.for_timestamp(millis))
        late = [place for place, offset in found.items() if offset < 0]
        return found | await self._offsets(late, _OFFSETS.latest())

    async def close(self) -> None:
        """Stop."""
        self._thread.shutdown(wait=False)

    async def _metadata(self, topic: str | None) -> Any:
        return await self._call(
            lambda admin: (
                admin.list_topics(timeout=_TIMEOUT)
                if topic is None
                else admin.list_topics(topic, timeout=_TIMEOUT)
            )
        )

    async def _offsets(self, places: Collection[Place], spec: Any) -> dict[Place, int]:
        if not places:
            return {}

        def ask(admin: AdminClient) -> dict[Place, int]:
            def all_of() -> dict[Place, int]:
                asked = admin.list_offsets(
                    {TopicPartition(*place): spec for place in places}, request_timeout=_TIMEOUT
                )
                return {
                    (each.topic, each.partition): found.result().offset
                    for each, found in asked.items()
                }

            found: dict[Place, int] = patiently(all_of)
            return found

        return await self._call(ask)

    async def _call(self, ask: Callable[[AdminClient], T]) -> T:
        def work() -> T:
            if self._admin is None:
                settings: Any = {
                    "bootstrap.servers": self.bootstrap,
                    "error_cb": silent,
                    "log_level": 0,
                }
                self._admin = AdminClient(settings)
            try:
                return ask(self._admin)
            except KafkaException as error:
                raise Unavailable(f"Kafka doesn't answer: {error}", retry_after=1.0) from error

        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _carried(message: RdMessage) -> Carried:
    key: Any = message.key()
    value: Any = message.value()
    headers: Any = message.headers()
    return Carried(
        message.topic() or "",
        message.partition() or 0,
        message.offset() or 0,
        key or b"",
        value or b"",
        headers or [],
        message.timestamp()[1],
    )


def _partitions(places: Mapping[Place, int]) -> list[TopicPartition]:
    return [
        TopicPartition(topic, partition, offset) for (topic, partition), offset in places.items()
    ]
