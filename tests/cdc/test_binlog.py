"""Rows of a real MariaDB reach Kafka and the customers, across kill -9, none lost and none twice."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import grpc

from deskwire.cdc.v1 import source_pb2, source_service_pb2, source_service_pb2_grpc
from deskwire.chat.v1 import customer_pb2, customer_service_pb2, customer_service_pb2_grpc
from deskwire_cli.launch import Launch
from deskwire_common.auth import KeySet, Role, TokenSigner
from deskwire_common.rpc import make_channel
from support import eventually
from support.command import kill
from support.servers import DatabaseServer
from support.topic import read_rows

TABLE = """CREATE TABLE customers (
    id INT PRIMARY KEY, name VARCHAR(100) NOT NULL, phone VARCHAR(32) NOT NULL, version INT NOT NULL DEFAULT 1,
    points BIGINT UNSIGNED NOT NULL DEFAULT 18446744073709551615, ratio DOUBLE NOT NULL DEFAULT 7)"""


def source(url: str, source_id: str) -> source_pb2.Source:
    return source_pb2.Source(
        source_id=source_id,
        kind=source_pb2.SOURCE_KIND_MARIADB,
        url=urlunsplit(urlsplit(url)._replace(scheme="mariadb")),
        system_id="crm:main",
        tables=["customers"],
        customer_rule=source_pb2.CustomerRule(
            table="customers",
            id_column="id",
            columns={"display_name": "name", "mobile": "phone"},
            version_column="version",
        ),
        snapshot=True,
    )


async def test_rows_reach_kafka_and_the_desk(launch: Launch, mariadb: DatabaseServer) -> None:
    url = mariadb.fresh()
    database = urlsplit(url).path.lstrip("/")

    def write(statement: str) -> Any:
        return asyncio.to_thread(mariadb.execute, statement, database)

    await write(TABLE)
    await write(
        "INSERT INTO customers (id, name, phone, version) VALUES (1, 'Ada', '+442071838750', 1)"
    )
    signer = TokenSigner(KeySet.load(launch.plan.home.keys_file))
    token = signer.mint(tenant="t", role=Role.OPERATOR, subject="test")
    name = f"s{uuid.uuid4().hex[:8]}"
    async with (
        make_channel(launch.plan.ports.address("cdc"), token=lambda: token) as cdc,
        make_channel(launch.plan.ports.address("chat"), token=lambda: token) as chat,
    ):
        created = await source_service_pb2_grpc.SourceServiceStub(cdc).CreateSource(
            source_service_pb2.CreateSourceRequest(
                request_id=str(uuid.uuid4()), source=source(url, name)
            )
        )
        assert ":***@" in created.source.url
        customers = customer_service_pb2_grpc.CustomerServiceStub(chat)

        async def mobile(number: int) -> str:
            identity = customer_pb2.Identity(namespace="crm:main", value=str(number))
            try:
                asked = customer_service_pb2.LookupCustomerRequest(identity=identity)
                return (await customers.LookupCustomer(asked)).customer.mobile
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                return ""

        async def is_mobile(number: int, expected: str) -> bool:
            return await mobile(number) == expected

        # The snapshot, and then what happens.
        await eventually(lambda: is_mobile(1, "+442071838750"), timeout=30)
        for number in range(2, 12):
            await write(
                "INSERT INTO customers (id, name, phone, version) "
                f"VALUES ({number}, 'C{number}', '+4420718387{number:02d}', 1)"
            )
        await write("UPDATE customers SET phone = '+442071838799', version = 2 WHERE id = 1")
        await kill(launch, "cdc")
        # While it was away, in one transaction: several rows and one that goes.
        await write("UPDATE customers SET name = CONCAT(name, '!'), version = version + 1")
        await write("ALTER TABLE customers ADD COLUMN note VARCHAR(20) DEFAULT 'new'")
        await write("DELETE FROM customers WHERE id = 11")
        await write(
            "UPDATE customers SET phone = '+442071838701', version = version + 1 WHERE id = 1"
        )
        await eventually(lambda: is_mobile(1, "+442071838701"), timeout=30)

    topic = f"deskwire.changes.{name}.customers"
    rows = await read_rows(launch.kafka, topic)
    by_key: dict[int, list[dict[str, Any]]] = {}
    for each in rows:
        by_key.setdefault(int(each["data"]["key"]["id"]), []).append(each)
    assert sorted(by_key) == list(range(1, 12))
    for changes in by_key.values():
        assert [each["sequence"] for each in changes] == list(range(1, len(changes) + 1))
        assert {each["origin"] for each in changes} == {"crm:main"}
    # 1: read, phone, name, phone. The others: insert, name; and the last one its end.
    assert [len(by_key[number]) for number in sorted(by_key)] == [4, *[2] * 9, 3]
    assert by_key[1][-1]["data"]["after"]["note"] == "new"
    # From the snapshot and from the log, with all digits, and without a point that no column has.
    for each in (by_key[1][0], by_key[1][-1], by_key[2][0]):
        row = each["data"]["after"]
        assert repr((row["points"], row["ratio"])) == "(18446744073709551615, 7)"
    assert "after" not in by_key[11][-1]["data"]
