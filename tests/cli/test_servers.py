"""The servers that every other test stands on."""

from __future__ import annotations

import uuid

import pytest
import redis
from confluent_kafka import Consumer, Producer

from deskwire_common.db import Database
from support import eventually
from support.servers import DatabaseServer


async def test_a_database_is_fresh_and_answers(database_url: str) -> None:
    db = await Database.open(database_url)
    try:
        async with db.transaction() as uow:
            await uow.connection.exec_driver_sql("CREATE TABLE only_here (id INTEGER PRIMARY KEY)")
            await uow.commit()
        async with db.read() as connection:
            rows = await connection.exec_driver_sql("SELECT COUNT(*) FROM only_here")
            assert rows.scalar() == 0
    finally:
        await db.close()


@pytest.mark.parametrize("broker", ["kafka", "devbroker"])
def test_a_broker_takes_and_gives(broker: str, request: pytest.FixtureRequest) -> None:
    bootstrap = request.getfixturevalue(broker)
    topic = f"test-{uuid.uuid4().hex}"
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
    producer.produce(topic, b"value", b"key")
    assert producer.flush(20) == 0
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": topic,
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
    )
    try:
        consumer.subscribe([topic])
        record = consumer.poll(20)
        assert record is not None
        assert (record.key(), record.value()) == (b"key", b"value")
    finally:
        consumer.close()


def test_valkey_answers(valkey: str) -> None:
    with redis.Redis.from_url(valkey) as client:
        assert client.ping()


def test_mariadb_writes_a_full_row_binlog(mariadb: DatabaseServer) -> None:
    url = mariadb.url("binlog_check")
    assert url.endswith("/binlog_check")
    mariadb.execute("CREATE TABLE t (id INT PRIMARY KEY)", "binlog_check")
    mariadb.drop(url)


async def test_eventually_says_what_it_saw_last() -> None:
    with pytest.raises(AssertionError, match="last answer: 0"):
        await eventually(lambda: 0, timeout=0.05)
