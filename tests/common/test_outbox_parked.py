"""Outbox: what Kafka never takes is parked with its key, on the real Kafka, and everything else goes on in order."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import pytest
import sqlalchemy as sa
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from confluent_kafka.cimpl import NewTopic

from deskwire_common import events, topics
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.events import DomainEvent
from deskwire_common.ids import RandomIds
from deskwire_common.kafka import MAX_RECORD_BYTES, Failure, Outgoing, Producer, Undelivered
from deskwire_common.metrics import REGISTRY
from deskwire_common.outbox import Outbox, Parking
from deskwire_common.topics import Topic
from support import eventually
from support.outbox import event, opened, outbox, published, relay

#: Bytes of a batch that a topic takes.
LIMIT = 20_000
MakeTopic = Callable[..., Topic]


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with opened(database_url) as database:
        yield database


class Admin:
    """Makes topics of one partition that take batches of a size, and changes that."""

    def __init__(self, kafka: str) -> None:
        self._client = AdminClient({"bootstrap.servers": kafka})

    def topic(self, limit: int = LIMIT) -> Topic:
        name = f"test-{uuid.uuid4().hex}"
        config = {"max.message.bytes": str(limit)}
        new = NewTopic(name, num_partitions=1, replication_factor=-1, config=config)
        for future in self._client.create_topics([new]).values():
            future.result()
        return replace(topics.EXTERNAL, name=name, partitions=1)

    def take(self, topic: Topic, limit: int) -> None:
        operation = AlterConfigOpType.SET
        entry = ConfigEntry("max.message.bytes", str(limit), incremental_operation=operation)
        resource = ConfigResource(ResourceType.TOPIC, topic.name, incremental_configs=[entry])
        for future in self._client.incremental_alter_configs([resource]).values():
            future.result()


@pytest.fixture
def admin(kafka: str) -> Admin:
    return Admin(kafka)


def large(topic: Topic, subject: str, sequence: int, size: int = 2 * LIMIT) -> DomainEvent:
    # Of random digits, as compression would make nothing of a repeated one.
    return event(topic, subject, sequence, "".join(uuid.uuid4().hex for _ in range(size // 32)))


async def add(db: Database, box: Outbox, *made: DomainEvent) -> None:
    async with db.transaction() as uow:
        await box.add(uow, made)
        await uow.commit()


async def parked(db: Database, box: Outbox) -> list[str]:
    """The ids of the parked events, in order."""
    async with db.read() as connection:
        query = sa.select(box.parked.c.event_id).order_by(box.parked.c.id)
        return list((await connection.execute(query)).scalars())


async def settled(db: Database, box: Outbox, count: int) -> None:
    """Wait until nothing is on its way, and `count` events are parked."""

    async def done() -> bool:
        return (await box.pending(db))[0] == 0 and len(await parked(db, box)) == count

    await eventually(done, timeout=30)


def refusals(topic: Topic, reason: str) -> float:
    labels = {"topic": topic.name, "reason": reason}
    return REGISTRY.get_sample_value("deskwire_outbox_refused_total", labels) or 0.0


async def test_a_row_that_is_too_large_is_parked_with_its_key_and_the_others_go_on(
    db: Database, kafka: str, admin: Admin
) -> None:
    topic, box = admin.topic(), outbox()
    parking = Parking(db, box)
    names = [f"s{number}" for number in range(10)]
    first = [event(topic, name, number, "x" * 200) for number in range(1, 21) for name in names]
    refused = large(topic, "s3", 21)
    later = [event(topic, name, 22 if name == "s3" else 21) for name in names]
    await add(db, box, *first, refused, *later)
    async with relay(db, box, kafka) as (made, _):
        await settled(db, box, 2)
        others = {name: list(range(1, 22)) for name in names if name != "s3"}
        assert await published(kafka, topic) == {**others, "s3": list(range(1, 21))}
        await eventually(lambda: made.published == 209)
        # Whoever operates it sees what, where and why.
        (row,) = await parking.refused()
        assert (row.event_id, row.topic, row.key) == (refused.event_id, topic.name, "s3")
        assert (row.reason, row.behind) == ("MSG_SIZE_TOO_LARGE", 1)
        assert row.size > 2 * LIMIT
        await eventually(lambda: refusals(topic, "MSG_SIZE_TOO_LARGE") == 1)
        # Later ones of the key wait behind it, those of other keys pass.
        await add(db, box, event(topic, "s3", 23), event(topic, "s4", 22))
        await settled(db, box, 3)
        assert await published(kafka, topic) == {
            **others,
            "s3": list(range(1, 21)),
            "s4": list(range(1, 23)),
        }


async def test_what_was_put_back_goes_before_what_came_later(
    db: Database, kafka: str, admin: Admin
) -> None:
    topic, box = admin.topic(), outbox()
    parking = Parking(db, box)
    await add(db, box, event(topic, "a", 1), large(topic, "a", 2), event(topic, "a", 3))
    async with relay(db, box, kafka):
        await settled(db, box, 2)
    # Another relay, which has parked nothing itself.
    box = outbox()
    async with relay(db, box, kafka):
        last = event(topic, "a", 4)
        await add(db, box, last, event(topic, "b", 1))
        await settled(db, box, 3)
        assert await published(kafka, topic) == {"a": [1], "b": [1]}
        # It still doesn't fit.
        assert await parking.redrive(topic=topic.name) == 3
        await settled(db, box, 3)
        await eventually(lambda: refusals(topic, "MSG_SIZE_TOO_LARGE") == 2)
        # Now it does.
        admin.take(topic, 10 * LIMIT)
        assert await parking.redrive(topic="another") == 0
        assert await parking.redrive(event_id=last.event_id) == 3
        await settled(db, box, 0)
    assert await published(kafka, topic) == {"a": [1, 2, 3, 4], "b": [1]}
    assert await parking.refused() == []


async def test_what_is_dropped_is_gone_and_the_rest_of_its_key_goes_on(
    db: Database, kafka: str, admin: Admin
) -> None:
    topic, box = admin.topic(), outbox()
    parking = Parking(db, box)
    one, other = large(topic, "a", 2), large(topic, "b", 1)
    await add(db, box, event(topic, "a", 1), one, event(topic, "a", 3), other)
    async with relay(db, box, kafka):
        await settled(db, box, 3)
        assert [row.event_id for row in await parking.refused()] == [one.event_id, other.event_id]
        assert await parking.drop(RandomIds().uuid7()) is False
        assert await parking.drop(one.event_id) is True
        await settled(db, box, 1)
        assert await published(kafka, topic) == {"a": [1, 3]}
        assert await parking.drop(other.event_id) is True
        assert await parking.count() == 0


async def test_rows_put_back_meanwhile_are_not_overtaken(
    db: Database, kafka: str, admin: Admin
) -> None:
    topic, box = admin.topic(), outbox()
    parking = Parking(db, box)
    await add(db, box, event(topic, "a", 1), event(topic, "a", 2))
    first, second = await box.lowest(db, 10, 1 << 20, parked=True)

    async def park(uow: UnitOfWork) -> int:
        return await parking.park(uow, {first.id: "INVALID_RECORD"}, [])

    assert await db.run(park) == 1
    (waiting,) = await box.lowest(db, 10, 1 << 20, parked=True)
    assert waiting.id == second.id
    assert waiting.waits
    # The key is put back after the relay has read the second row, and before it sets it aside.
    assert await parking.redrive() == 1

    async def behind(uow: UnitOfWork) -> int:
        return await parking.park(uow, {}, [waiting.id])

    assert await db.run(behind) == 0
    async with relay(db, box, kafka):
        await settled(db, box, 0)
    assert await published(kafka, topic) == {"a": [1, 2]}


async def test_a_topic_that_cannot_be_parks_its_rows_and_no_others(
    db: Database, kafka: str, admin: Admin
) -> None:
    topic, box = admin.topic(), outbox()
    # No topic's name has a blank.
    wrong = replace(topic, name=f"no topic {uuid.uuid4().hex}")
    bad = [event(wrong, f"s{number}", 1) for number in range(5)]
    good = [event(topic, f"s{number}", 1) for number in range(5)]
    await add(db, box, *(each for pair in zip(bad, good, strict=True) for each in pair))
    async with relay(db, box, kafka) as (made, _):
        await settled(db, box, 5)
        rows = await Parking(db, box).refused()
        assert [row.event_id for row in rows] == [each.event_id for each in bad]
        assert {row.reason for row in rows} <= {"TOPIC_EXCEPTION", "_UNKNOWN_TOPIC"}
        # What comes later isn't even tried.
        await add(db, box, event(wrong, "s9", 1), event(topic, "s9", 1))
        await settled(db, box, 6)
        await eventually(lambda: made.published == 6)
    assert await published(kafka, topic) == {f"s{number}": [1] for number in (*range(5), 9)}


class Refusing(Producer):
    """A producer that may not write to one topic, until it may."""

    topic = ""
    tries = 0

    async def send_batch(self, records: Sequence[Outgoing]) -> None:  # type: ignore[override]
        failure = Failure("TOPIC_AUTHORIZATION_FAILED", "not yours", final=True, of_topic=True)
        failures = {
            index: failure for index, record in enumerate(records) if record[0] == self.topic
        }
        rest = [record for index, record in enumerate(records) if index not in failures]
        if rest:
            await super().send_batch(rest)
        if failures:
            self.tries += 1
            raise Undelivered(failures)


async def test_a_topic_that_is_allowed_again_gets_all_that_waited(
    db: Database, kafka: str, admin: Admin
) -> None:
    topic, other, box = admin.topic(), admin.topic(), outbox()
    producer = Refusing(kafka, "test")
    producer.topic = topic.name
    wanted = {f"s{number}": [1, 2, 3] for number in range(3)}
    await add(db, box, *(event(topic, name, n) for n in (1, 2, 3) for name in wanted))
    async with relay(db, box, kafka, producer=producer, topic_pause=0.2) as (made, _):
        await eventually(lambda: producer.tries > 0, timeout=30)
        await add(db, box, event(other, "a", 1))
        # It is tried again and again, and nobody else waits for that.
        await eventually(lambda: made.published == 1, timeout=30)
        await eventually(lambda: producer.tries >= 3, timeout=30)
        assert await published(kafka, topic) == {}
        producer.topic = ""
        await settled(db, box, 0)
        await eventually(lambda: made.published == 10)
    assert await published(kafka, topic) == wanted
    assert await published(kafka, other) == {"a": [1]}


async def test_rounds_end_by_bytes_too(db: Database, kafka: str, admin: Admin) -> None:
    topic, box = admin.topic(2 * MAX_RECORD_BYTES), outbox()
    sizes = [1_000, 1_000, 300_000, 300_000, 300_000, 1_000]
    await add(db, box, *(large(topic, "a", n, size) for n, size in enumerate(sizes, 1)))

    async def round_of(rows: int, size: int) -> int:
        return len(await box.lowest(db, rows, size, parked=False))

    # At least one, and the row with which it is full.
    assert await round_of(10, 1) == 1
    assert await round_of(10, 100_000) == 3
    assert await round_of(10, 400_000) == 4
    assert await round_of(2, 1 << 30) == 2
    assert await round_of(10, 1 << 30) == 6
    async with relay(db, box, kafka, batch_bytes=400_000) as (made, _):
        assert await made.drain(30)
    assert await published(kafka, topic) == {"a": [1, 2, 3, 4, 5, 6]}


@pytest.mark.parametrize("before", [0, 1, 499])
@pytest.mark.parametrize("alone", [True, False])
async def test_a_failure_names_the_records_that_are_not_there(
    kafka: str, admin: Admin, alone: bool, before: int
) -> None:
    topic = admin.topic()
    producer = Producer(kafka, "test", linger_ms=0.0, strict=True)
    await producer.start()

    def record(made: DomainEvent) -> Outgoing:
        return topic.name, made.subject.encode(), events.encode(made), []

    records = [record(event(topic, "a", number)) for number in range(1, before + 1)]
    records += [record(large(topic, "a", before + 1))]
    records += [record(event(topic, "a", number)) for number in range(before + 2, before + 500)]
    try:
        await producer.purge_and_rebuild(alone=alone)
        with pytest.raises(Undelivered) as caught:
            await producer.send_batch(records)
        failures = caught.value.failures
        assert failures[before].reason == "MSG_SIZE_TOO_LARGE"
        assert failures[before].final
        assert not failures[before].of_topic
        # Those that shared its batch on the wire failed with it, and what wasn't sent yet.
        sent = [number for number in range(1, before + 500) if number - 1 not in failures]
        assert (await published(kafka, topic)).get("a", []) == sent
        assert len(sent) < before + 498
        if alone:
            assert set(range(1, before + 1)) <= set(sent)
            assert [number for number in failures if failures[number].final] == [before]
    finally:
        await producer.close()
