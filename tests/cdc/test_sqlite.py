"""Rows of a SQLite file reach Kafka and the customers by triggers, across kill -9, and the file is left as it was."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from deskwire.cdc.v1 import source_pb2, source_service_pb2, source_service_pb2_grpc
from deskwire.chat.v1 import customer_service_pb2, customer_service_pb2_grpc
from deskwire_cdc.sources.sqlite.files import NOT_THERE
from deskwire_cli.launch import Launch
from deskwire_common.auth import KeySet, Role, TokenSigner
from deskwire_common.rpc import make_channel
from support import eventually
from support.command import kill
from support.topic import read_rows

TABLES = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL, phone TEXT, version INTEGER NOT NULL DEFAULT 1);
CREATE TABLE orders (shop TEXT, number INTEGER, total REAL, photo BLOB, PRIMARY KEY (shop, number)) WITHOUT ROWID;
INSERT INTO customers VALUES (1, 'Ada', '+442071838750', 1);
"""


async def test_rows_of_a_file_reach_kafka_and_the_desk(launch: Launch, tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as shop:
        shop.executescript(TABLES)

    def in_one_transaction(statements: Sequence[str], *, undo: bool = False) -> None:
        connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        connection.execute("BEGIN IMMEDIATE")
        for each in statements:
            connection.execute(each)
        connection.execute("ROLLBACK" if undo else "COMMIT")
        connection.close()

    async def write(*statements: str, undo: bool = False) -> None:
        await asyncio.to_thread(in_one_transaction, statements, undo=undo)

    signer = TokenSigner(KeySet.load(launch.plan.home.keys_file))
    token = signer.mint(tenant="t", role=Role.OPERATOR, subject="test")
    name = f"s{uuid.uuid4().hex[:8]}"
    source = source_pb2.Source(
        source_id=name,
        kind=source_pb2.SOURCE_KIND_SQLITE,
        url=f"sqlite:///{path}",
        system_id="crm:main",
        tables=["customers", "orders"],
        customer_rule=source_pb2.CustomerRule(
            table="customers",
            id_column="id",
            columns={"display_name": "name", "mobile": "phone"},
            version_column="version",
        ),
        snapshot=True,
    )
    async with (
        make_channel(launch.plan.ports.address("cdc"), token=lambda: token) as cdc,
        make_channel(launch.plan.ports.address("chat"), token=lambda: token) as chat,
    ):
        sources = source_service_pb2_grpc.SourceServiceStub(cdc)
        await sources.CreateSource(
            source_service_pb2.CreateSourceRequest(request_id=str(uuid.uuid4()), source=source)
        )
        customers = customer_service_pb2_grpc.CustomerServiceStub(chat)

        async def mobiles() -> dict[str, str]:
            found = await customers.ListCustomers(customer_service_pb2.ListCustomersRequest())
            return {each.identities[0].value: each.mobile for each in found.customers}

        async def are(expected: dict[str, str]) -> bool:
            return await mobiles() == expected

        await eventually(lambda: are({"1": "+442071838750"}), timeout=30)
        await write("INSERT INTO orders VALUES ('berlin', 1, 9.5, x'00ff')")
        await write("UPDATE customers SET phone = '+442071830000', version = 7", undo=True)
        await kill(launch, "cdc")
        await write(
            "INSERT INTO customers VALUES (2, 'Grace', NULL, 1)",
            "UPDATE customers SET phone = '+442071838751', version = 2 WHERE id = 1",
            "UPDATE orders SET number = 2 WHERE number = 1",
        )
        await write("DELETE FROM orders")
        await eventually(lambda: are({"1": "+442071838751", "2": ""}), timeout=30)
        topics = [f"deskwire.changes.{name}.{table}" for table in ("customers", "orders")]

        async def carried_over() -> bool:
            asked = source_service_pb2.GetSourceRequest(source_id=name)
            try:
                return (await sources.GetSource(asked)).source.change_count >= 7
            except grpc.aio.AioRpcError as error:
                # This channel still waits before it connects to the new process.
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return False

        await eventually(carried_over, timeout=30)

        def captured() -> set[str]:
            with sqlite3.connect(path) as shop:
                made = "SELECT name FROM sqlite_master WHERE name LIKE '%deskwire%'"
                return {row[0] for row in shop.execute(made)}

        assert captured()
        await sources.DeleteSource(
            source_service_pb2.DeleteSourceRequest(request_id=str(uuid.uuid4()), source_id=name)
        )

        await eventually(lambda: not captured(), timeout=30)

    people, orders = [await read_rows(launch.kafka, topic) for topic in topics]
    assert [_told(each) for each in people if each["data"]["key"]["id"] == 1] == [
        ("snapshot", None, "+442071838750"),
        ("update", "+442071838750", "+442071838751"),
    ]
    assert [_told(each) for each in people if each["data"]["key"]["id"] == 2] == [
        ("insert", None, None)
    ]
    by_key = [(each["data"]["operation"], each["data"]["key"]["number"]) for each in orders]
    # A key that changes is the end of one row and the beginning of another.
    assert sorted(by_key) == [("delete", 1), ("delete", 2), ("insert", 1), ("insert", 2)]
    first = next(each["data"]["after"] for each in orders if "after" in each["data"])
    assert (first["shop"], first["total"]) == ("berlin", 9.5)


async def test_a_row_that_cannot_be_kept_is_named_counted_and_forgotten_when_it_passes(
    launch: Launch, tmp_path: Path
) -> None:
    path = tmp_path / "people.db"

    def write(*statements: str) -> None:
        with closing(sqlite3.connect(path, timeout=30)) as people, people:
            for each in statements:
                people.execute(each)

    write(
        "CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT, phone TEXT)",
        "INSERT INTO people VALUES (1, 'Li' || char(10) || 'Na', '+86 138 0013 8000')",
        "INSERT INTO people VALUES (2, 'Jean' || char(160) || 'Dupont', '(+86) 138 0013 8001')",
        "INSERT INTO people VALUES (3, char(8238) || 'evil', NULL)",
    )
    signer = TokenSigner(KeySet.load(launch.plan.home.keys_file))
    tenant = f"t{uuid.uuid4().hex[:8]}"
    token = signer.mint(tenant=tenant, role=Role.OPERATOR, subject="auth0|op")
    name = f"s{uuid.uuid4().hex[:8]}"
    source = source_pb2.Source(
        source_id=name,
        kind=source_pb2.SOURCE_KIND_SQLITE,
        url=f"sqlite:///{path}",
        system_id="crm:main",
        tables=["people"],
        customer_rule=source_pb2.CustomerRule(
            table="people", id_column="id", columns={"display_name": "name", "mobile": "phone"}
        ),
        snapshot=True,
    )
    async with (
        make_channel(launch.plan.ports.address("cdc"), token=lambda: token) as cdc,
        make_channel(launch.plan.ports.address("chat"), token=lambda: token) as chat,
    ):
        sources = source_service_pb2_grpc.SourceServiceStub(cdc)
        await sources.CreateSource(
            source_service_pb2.CreateSourceRequest(request_id=str(uuid.uuid4()), source=source)
        )
        customers = customer_service_pb2_grpc.CustomerServiceStub(chat)

        async def are(expected: dict[str, tuple[str, str]]) -> bool:
            found = await customers.ListCustomers(customer_service_pb2.ListCustomersRequest())
            return {
                each.identities[0].value: (each.display_name, each.mobile)
                for each in found.customers
            } == expected

        async def refused(count: int, *parts: str) -> bool:
            asked = source_service_pb2.GetSourceRequest(source_id=name)
            shown = (await sources.GetSource(asked)).source
            assert "evil" not in shown.last_error
            told = shown.last_error if count else f"nothing{shown.last_error}"
            return shown.refused_count == count and all(
                each in told for each in parts or ["nothing"]
            )

        # What can be kept of a row is.
        jean = ("Jean\u00a0Dupont", "+8613800138001")
        await eventually(
            lambda: are({"1": ("", "+8613800138000"), "2": jean, "3": ("", "")}), timeout=30
        )
        await eventually(lambda: refused(2, f"{name}/people/3", "column name", "one line"))
        await asyncio.to_thread(write, "UPDATE people SET phone = '+86 139 0013 9000' WHERE id = 1")
        await eventually(
            lambda: are({"1": ("", "+8613900139000"), "2": jean, "3": ("", "")}), timeout=30
        )
        await eventually(lambda: refused(2, f"{name}/people/1"))
        await asyncio.to_thread(write, "DELETE FROM people WHERE id = 3")
        await eventually(lambda: refused(1, f"{name}/people/1"))
        await asyncio.to_thread(write, "UPDATE people SET name = 'Li Na' WHERE id = 1")
        await eventually(lambda: refused(0))
        await eventually(
            lambda: are({"1": ("Li Na", "+8613900139000"), "2": jean, "3": ("", "")}), timeout=30
        )


def _told(event: dict[str, Any]) -> tuple[str, Any, Any]:
    data = event["data"]
    operation = data["operation"]
    before, after = data.get("before") or {}, data.get("after") or {}
    return operation, before.get("phone"), after.get("phone")


async def test_the_suites_own_databases_are_nobodys_source(launch: Launch) -> None:
    home = launch.plan.home
    signer = TokenSigner(KeySet.load(home.keys_file))

    def schema() -> dict[str, list[Any]]:
        found = {}
        for path in sorted(home.databases.glob("*.db")):
            with closing(sqlite3.connect(path)) as database:
                found[path.name] = database.execute("SELECT * FROM sqlite_master").fetchall()
        return found

    before = schema()
    assert set(before) >= {"chat.db", "cdc.db", "events.db"}
    linked = home.root.parent / "linked.db"
    linked.hardlink_to(home.databases / "chat.db")
    told = {}
    for role, system in ((Role.INTEGRATION, "crm:main"), (Role.OPERATOR, "")):
        token = signer.mint(tenant="t2", role=role, subject="mallory", system=system)
        async with make_channel(
            launch.plan.ports.address("cdc"), token=lambda token=token: token
        ) as channel:
            stub = source_service_pb2_grpc.SourceServiceStub(channel)
            for path in (home.databases / "chat.db", home.databases / "cdc.db", linked):
                source = source_pb2.Source(
                    source_id="s-1",
                    kind=source_pb2.SOURCE_KIND_SQLITE,
                    url=f"sqlite:///{path}",
                    system_id="crm:main",
                    tables=["customers", "messages"],
                    snapshot=True,
                )
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.CreateSource(
                        source_service_pb2.CreateSourceRequest(
                            request_id=str(uuid.uuid4()), source=source
                        )
                    )
                told[role, path] = (caught.value.code().name, caught.value.details())
    assert {code for (role, _), (code, _) in told.items() if role is Role.INTEGRATION} == {
        "PERMISSION_DENIED"
    }
    assert {told[key] for key in told if key[0] is Role.OPERATOR} == {
        ("FAILED_PRECONDITION", NOT_THERE)
    }
    assert schema() == before
