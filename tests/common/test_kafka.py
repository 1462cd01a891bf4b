"""Kafka, the real one: what a report means, and where a reader begins."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deskwire_common import topics
from deskwire_common.errors import Unavailable
from deskwire_common.kafka import (
    Producer,
    Reader,
    Record,
    cluster_id,
    ensure_topics,
)
from support import eventually

NOBODY = "127.0.0.1:1"


@pytest.fixture
async def topic(kafka: str) -> str:
    """A new topic of three partitions."""
    made = replace(topics.EXTERNAL, name=f"test-{uuid.uuid4().hex}", partitions=3)
    assert await ensure_topics(kafka, [made]) == [made.name]
    assert await ensure_topics(kafka, [made]) == []
    return made.name


@pytest.fixture
async def producer(kafka: str) -> AsyncIterator[Producer]:
    producer = Producer(kafka, "test")
    await producer.start()
    yield producer
    await producer.close()


async def send(producer: Producer, topic: str, *values: str, key: str = "k") -> None:
    async with asyncio.timeout(30):
        await producer.send_batch([(topic, key.encode(), each.encode(), []) for each in values])


async def read(kafka: str, topic: str, start: Any) -> list[Record]:
    """All from there to the end."""
    reader = Reader(kafka, [topic], start=start)
    await reader.start()
    found: list[Record] = []
    try:
        ends = await reader.end_offsets()
        async with asyncio.timeout(30):
            while any(reader.positions[place] < end for place, end in ends.items()):
                found += await reader.read()
    finally:
        await reader.close()
    return found


def texts(records: Sequence[Record]) -> list[str]:
    return [(each.value or b"").decode() for each in records]


async def test_records_of_a_key_are_in_the_order_of_sending(
    kafka: str, topic: str, producer: Producer
) -> None:
    wanted = [str(number) for number in range(500)]
    keys = [b"a", "б".encode(), b"c"]
    sent = [
        (topic, key, each.encode(), [("h", key), ("h", b"2")]) for each in wanted for key in keys
    ]
    batches = [producer.send_batch(sent[start : start + 100]) for start in range(0, len(sent), 100)]
    async with asyncio.timeout(30):
        await asyncio.gather(*batches)
    found = await read(kafka, topic, "earliest")
    for key in keys:
        own = [each for each in found if each.key == key]
        assert texts(own) == wanted
        assert own[0].headers == [("h", key), ("h", b"2")]
    assert len(found) == 1500


async def test_a_record_that_the_broker_cannot_take_fails_its_batch(
    kafka: str, topic: str, producer: Producer
) -> None:
    with pytest.raises(Unavailable):
        await producer.send_batch(
            [(topic, b"k", b"small", []), (topic, b"k", b"x" * 2_000_000, [])]
        )
    await producer.purge_and_rebuild()
    await send(producer, topic, "after")
    assert texts(await read(kafka, topic, "earliest"))[-1] == "after"


async def test_what_is_purged_is_reported_and_never_sent() -> None:
    producer = Producer(NOBODY, "test")
    await producer.start()
    batches = [producer.send_batch([("t", b"k", b"v", [])] * size) for size in (1, 3)]
    await producer.purge_and_rebuild()
    async with asyncio.timeout(10):
        for future in batches:
            with pytest.raises(Unavailable):
                await future
    await producer.close()
    with pytest.raises(Unavailable):
        await producer.send_batch([("t", b"k", b"v", [])])


async def test_what_was_purged_by_a_caller_who_left_is_not_told_delivered() -> None:
    producer = Producer(NOBODY, "test")
    await producer.start()
    try:
        sent = producer.send_batch([("nowhere", b"k", b"v", [])])
        left = asyncio.create_task(producer.purge_and_rebuild())
        await asyncio.sleep(0)
        left.cancel()
        await producer.purge_and_rebuild()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(sent, 10)
    finally:
        await asyncio.wait_for(producer.close(), 20)


async def test_a_reader_begins_where_it_is_told(kafka: str, topic: str, producer: Producer) -> None:
    for number in range(20):
        await send(producer, topic, str(number))
    everything = await read(kafka, topic, "earliest")
    assert texts(everything) == [str(number) for number in range(20)]
    middle = everything[10]
    place = (middle.topic, middle.partition)
    assert texts(await read(kafka, topic, {place: middle.offset})) == texts(everything[10:])
    since = datetime.fromtimestamp(middle.timestamp / 1000, UTC)
    expected = [each for each in everything if each.timestamp >= middle.timestamp]
    assert await read(kafka, topic, since) == expected
    assert await read(kafka, topic, datetime.now(UTC) + timedelta(days=1)) == []
    assert await read(kafka, topic, "latest") == []


async def test_a_reader_from_the_end_gets_what_comes_and_its_position_continues(
    kafka: str, topic: str, producer: Producer
) -> None:
    await send(producer, topic, "before")
    reader = Reader(kafka, [topic], start="latest")
    await reader.start()
    await send(producer, topic, "1", "2")
    found: list[Record] = []

    async def more() -> bool:
        found.extend(await reader.read(1, 0.2))
        return bool(found)

    await eventually(more)
    await send(producer, topic, "3")
    rest = await read(kafka, topic, dict(reader.positions))
    assert texts([*found, *rest]) == ["1", "2", "3"]
    await reader.close()


async def test_a_reader_waits_for_a_topic_that_is_being_made(kafka: str) -> None:
    made = replace(topics.EXTERNAL, name=f"test-{uuid.uuid4().hex}", partitions=3)
    reader = Reader(kafka, [made.name])
    starting = asyncio.create_task(reader.start())
    await asyncio.sleep(
        0.2
    )  # it has most likely asked before there is one; either way it reads all of it
    await ensure_topics(kafka, [made])
    await starting
    assert sorted(reader.positions) == [(made.name, number) for number in range(3)]
    await reader.close()


async def test_a_place_that_is_not_there_is_an_error_and_not_silence(
    kafka: str, topic: str, producer: Producer
) -> None:
    await send(producer, topic, "1")
    reader = Reader(kafka, [topic], start={(topic, number): 999 for number in range(3)})
    await reader.start()

    async def refused() -> bool:
        try:
            await reader.read()
        except Unavailable:
            return True
        return False

    try:
        await eventually(refused)
    finally:
        await reader.close()


async def test_a_broker_that_is_away_is_unavailable(kafka: str) -> None:
    assert await cluster_id(kafka) == await cluster_id(kafka)
    with pytest.raises(Unavailable):
        await cluster_id(NOBODY, timeout=0.5)
    with pytest.raises(Unavailable):
        await ensure_topics(NOBODY, timeout=0.5)
