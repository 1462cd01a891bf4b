"""Of a MariaDB's transactions, what was committed is delivered, and nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from deskwire_cdc.domain.changes import Change, Operation
from deskwire_cdc.domain.sources import SourceUnusable
from deskwire_cdc.sources.mariadb.position import Position
from deskwire_cdc.sources.mariadb.transaction import Transaction
from support.capture import Crm, batches_until, changes_of, reader_of, source_of
from support.servers import DatabaseServer

TEMPORARY = "CREATE TEMPORARY TABLE staging (i INT)"


@pytest.fixture
def crm(mariadb: DatabaseServer) -> Iterator[Crm]:
    crm = Crm(mariadb)
    crm.run("CREATE TABLE c (id INT PRIMARY KEY, name VARCHAR(20))")
    yield crm
    crm.drop()


async def test_rows_of_a_transaction_that_was_rolled_back(crm: Crm) -> None:
    """What made the server log it is the temporary table."""
    batches = await crm.streamed(
        "INSERT INTO c VALUES (1, 'Ada')",
        "START TRANSACTION",
        TEMPORARY,
        "UPDATE c SET name = 'Eve'",
        "INSERT INTO c SELECT 1000 + seq, 'ghost' FROM seq_1_to_1200",
        "ROLLBACK",
        tables=["c"],
    )
    assert [(each.operation, each.after) for each in changes_of(batches)] == [
        (Operation.INSERT, {"id": 1, "name": "Ada"})
    ]


async def test_rows_since_a_savepoint_that_was_gone_back_to(crm: Crm) -> None:
    batches = await crm.streamed(
        "START TRANSACTION",
        "INSERT INTO c VALUES (1, '')",
        "SAVEPOINT `a b`",
        TEMPORARY,
        "INSERT INTO c VALUES (2, '')",
        "SAVEPOINT later",
        "INSERT INTO c VALUES (3, '')",
        "ROLLBACK TO `a b`",
        "INSERT INTO c VALUES (4, '')",
        "COMMIT",
        tables=["c"],
    )
    assert [each.key["id"] for each in changes_of(batches)] == [1, 4]
    assert crm.run("SELECT id FROM c ORDER BY id") == [(1,), (4,)]


async def test_a_transaction_goes_out_in_batches_whose_positions_lie_within_it(crm: Crm) -> None:
    batches = await crm.streamed(
        "INSERT INTO c SELECT seq, '' FROM seq_1_to_25", tables=["c"], max_batch=10
    )
    assert [each.key["id"] for each in changes_of(batches)] == list(range(1, 26))
    inside = Position.parse(batches[0].position)
    assert inside.partial_gtid
    assert inside.partial_rows == len(batches[0].changes)
    assert not Position.parse(batches[-1].position).partial_gtid


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_an_xa_transaction_with_rows_of_a_captured_table(crm: Crm, end: str) -> None:
    """They are in the binlog before anybody knows what becomes of them."""
    with pytest.raises(SourceUnusable) as caught:
        await crm.streamed(
            "XA START 'x'",
            "INSERT INTO c VALUES (1, '')",
            "XA END 'x'",
            "XA PREPARE 'x'",
            f"XA {end} 'x'",
            tables=["c"],
        )
    assert caught.value.setting == "xa"


async def test_an_xa_transaction_of_other_tables_is_passed(crm: Crm) -> None:
    crm.run("CREATE TABLE other (id INT PRIMARY KEY)")
    batches = await crm.streamed(
        "XA START 'x'",
        "INSERT INTO other VALUES (1)",
        "XA END 'x'",
        "XA PREPARE 'x'",
        "XA COMMIT 'x'",
        "INSERT INTO c VALUES (1, '')",
        tables=["c"],
    )
    assert [each.key["id"] for each in changes_of(batches)] == [1]


@pytest.mark.parametrize("limit", [1, 25, 1_000_000])
def test_savepoints_of_a_transaction_that_waits_in_a_file(limit: int) -> None:
    held = Transaction("0-1-1", max_held_bytes=limit)

    def add(*numbers: int) -> None:
        for number in numbers:
            held.rows += 1
            row = {"id": number, "text": "zwei\nZeilen \x85"}
            held.add([Change("c", Operation.INSERT, row, None, row, str(number), 0, 0)], 10)

    add(1, 2)
    held.savepoint("a")
    add(3, 4, 5)
    held.savepoint("b")
    add(6)
    held.rollback_to("b")
    add(7)
    held.rollback_to("a")
    add(8, 9)
    rows = [(row, each.key["id"]) for row, changes in held.changes() for each in changes]
    assert rows == [(1, 1), (2, 2), (8, 8), (9, 9)]
    held.close()


async def test_the_position_moves_while_the_server_is_busy_with_other_tables(crm: Crm) -> None:
    """A busy server sends no heartbeats, and a log that is kept for a day is gone after it."""
    crm.run("CREATE TABLE other (id INT AUTO_INCREMENT PRIMARY KEY)")
    reader = reader_of(source_of(crm.url, "v"), heartbeat_seconds=1.0)
    position = await reader.start_position()
    over = threading.Event()

    def write() -> None:
        while not over.wait(0.05):
            crm.run("INSERT INTO other VALUES ()")

    writing = asyncio.create_task(asyncio.to_thread(write))
    try:
        batches = await batches_until(reader, position, lambda found: len(found) == 3)
    finally:
        over.set()
        await writing
        await reader.close()
    places = [Position.parse(each.position).done for each in batches]
    assert not any(each.changes for each in batches)
    assert len({str(each) for each in places}) == 3
