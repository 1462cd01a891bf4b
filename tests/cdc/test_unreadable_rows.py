"""A row that can't be decoded or published is told by its key; all others go on, in their order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from deskwire_cdc.domain.changes import Change, NumberedChange, Operation
from deskwire_cdc.sinks.kafka import KafkaSink
from deskwire_common.clock import SystemClock
from deskwire_common.ids import RandomIds
from deskwire_common.kafka import MAX_RECORD_BYTES, Producer
from support.capture import Crm, changes_of, source_of
from support.servers import DatabaseServer
from support.suite import new_id
from support.topic import read_rows


@pytest.fixture
def crm(mariadb: DatabaseServer) -> Iterator[Crm]:
    crm = Crm(mariadb)
    yield crm
    crm.drop()


async def test_bytes_that_are_no_text(crm: Crm) -> None:
    """The server keeps pairs of bytes to which its charset gives no character."""
    crm.run("CREATE TABLE c (id INT PRIMARY KEY, name VARCHAR(20) CHARACTER SET gbk)")
    batches = await crm.streamed(
        "INSERT INTO c VALUES (1, _gbk x'a140'), (2, '中')",
        "UPDATE c SET name = '文' WHERE id = 1",
        "UPDATE c SET name = _gbk x'a140' WHERE id = 2",
        "DELETE FROM c",
        tables=["c"],
    )
    told = [
        (each.operation.value, each.key["id"], bool(each.unreadable), each.before, each.after)
        for each in changes_of(batches)
    ]
    assert told == [
        ("insert", 1, True, None, None),
        ("insert", 2, False, None, {"id": 2, "name": "中"}),
        ("update", 1, False, None, {"id": 1, "name": "文"}),
        ("update", 2, True, None, None),
        ("delete", 1, False, {"id": 1, "name": "文"}, None),
        ("delete", 2, False, None, None),
    ]
    assert changes_of(batches)[0].unreadable == "column name: byte 0xa1 is no gbk"


@asynccontextmanager
async def publishing(kafka: str) -> AsyncIterator[tuple[KafkaSink, list[str]]]:
    failures: list[str] = []

    async def retrying(message: str) -> None:
        failures.append(message)

    producer = Producer(kafka, "test")
    await producer.start()
    try:
        yield KafkaSink(producer, retrying, clock=SystemClock(), ids=RandomIds()), failures
    finally:
        await producer.close()


def numbered(sequence: int, text: str, **fields: Any) -> NumberedChange:
    key = {"id": sequence % 2}
    row = {**key, "text": text}
    change = Change("orders", Operation.UPDATE, key, row, row, f"0-1-{sequence}", 0, 0)
    subject = f"t/crm/orders/{sequence % 2}"
    return NumberedChange(replace(change, **fields), RandomIds().uuid7(), subject, sequence, 1)


async def test_a_row_that_kafka_refuses_is_told_without_its_values(kafka: str) -> None:
    """Each other one is there once, in its order; nobody repeats a batch that is refused for ever."""
    source = replace(source_of("mysql://x:y@127.0.0.1/z", "orders"), source_id=f"s{new_id()[:8]}")
    topic = f"deskwire.changes.{source.source_id}.orders"
    made = NewTopic(topic, 1, 1, config={"max.message.bytes": "20000"})
    admin = AdminClient({"bootstrap.servers": kafka})
    await asyncio.to_thread(admin.create_topics([made])[topic].result)
    sizes = [10, 20, 30_000, 40, 50, 60_000, 70]
    async with publishing(kafka) as (sink, failures):
        # Of digits that don't repeat, which Kafka's compression makes no smaller than the limit.
        records = [
            sink.record(source, numbered(index, "".join(new_id() for _ in range(size // 30))))
            for index, size in enumerate(sizes)
        ]
        await sink.publish(source, records)
        assert failures == []
    rows = await read_rows(kafka, topic)
    assert [each["sequence"] for each in rows] == list(range(len(sizes)))
    assert [each["event_type"] for each in rows] == [
        "row_unreadable" if size > 1000 else "row_changed" for size in sizes
    ]
    assert rows[2]["data"]["key"] == {"id": 0}
    assert rows[2]["data"]["position"] == "0-1-2"
    assert "MSG_SIZE_TOO_LARGE" in rows[2]["data"]["reason"]
    assert [each.unreadable != "" for each in records] == [size > 1000 for size in sizes]


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ("b", "a", {"before", "after"}),
        ("b" * MAX_RECORD_BYTES, "a", {"after"}),
        ("b", "a" * MAX_RECORD_BYTES, {"reason"}),
    ],
)
async def test_an_event_that_is_too_large_goes_without_what_is_too_much(
    kafka: str, before: str, after: str, kept: set[str]
) -> None:
    source = source_of("mysql://x:y@127.0.0.1/z", "orders")
    row = numbered(1, "", before={"id": 1, "text": before}, after={"id": 1, "text": after})
    async with publishing(kafka) as (sink, _):
        record = sink.record(source, row)
    told = record.outgoing[2].decode()
    assert {name for name in ("before", "after", "reason") if f'"{name}":' in told} == kept
    assert len(told) <= MAX_RECORD_BYTES
    assert bool(record.unreadable) == ("reason" in kept)
