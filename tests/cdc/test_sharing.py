"""Several cdc processes on one database: they share the sources, and no row is lost whoever comes and goes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from deskwire.cdc.v1 import source_pb2, source_service_pb2, source_service_pb2_grpc
from deskwire_cdc.app import build
from deskwire_cdc.config import Settings
from deskwire_cdc.store import METADATA
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.db import Database
from deskwire_common.ids import RandomIds
from deskwire_common.lifecycle import running
from deskwire_common.migrations import migrate
from deskwire_common.rpc import make_channel
from support import eventually
from support.sharing import shared
from support.topic import read_rows

COUNT = 6


def write(path: Path, number: int) -> None:
    with sqlite3.connect(path, timeout=30) as shop:
        shop.execute("CREATE TABLE IF NOT EXISTS orders (number INTEGER PRIMARY KEY)")
        if number:
            shop.execute("INSERT INTO orders VALUES (?)", [number])
    shop.close()


def captured(path: Path) -> list[str]:
    """What capture has installed in a file."""
    with sqlite3.connect(path, timeout=30) as shop:
        rows = shop.execute(
            "SELECT name FROM sqlite_master WHERE name LIKE '%deskwire%'"
        ).fetchall()
    shop.close()
    return [row[0] for row in rows if row[0] != "_deskwire_mark"]


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
async def test_two_processes_share_sources(
    request: pytest.FixtureRequest,
    kind: str,
    kafka: str,
    keys_file: Path,
    signer: TokenSigner,
    tmp_path: Path,
) -> None:
    server = request.getfixturevalue(kind)
    url = server.fresh()
    await migrate(url, "deskwire_cdc")
    run = RandomIds().uuid7()[-8:]
    names = [f"s{run}-{number}" for number in range(COUNT)]
    files = {name: tmp_path / f"{name}.db" for name in names}
    token = signer.mint(tenant="t", role=Role.OPERATOR, subject="olga")

    @asynccontextmanager
    async def process() -> AsyncIterator[Any]:
        settings = Settings(
            grpc_listen="127.0.0.1:0", keys_file=keys_file, database_url=url, kafka=kafka,
            chat_target="127.0.0.1:1", sqlite_root=str(tmp_path),
        )  # fmt: skip
        async with (
            running("cdc", settings, build) as runtime,
            make_channel(f"127.0.0.1:{runtime.port}", token=lambda: token) as channel,
        ):
            yield source_service_pb2_grpc.SourceServiceStub(channel)

    async with AsyncExitStack() as stack:
        sources = await stack.enter_async_context(process())
        db = await Database.open(url, pool_size=1)
        stack.push_async_callback(db.close)
        for name, path in files.items():
            await asyncio.to_thread(write, path, 0)
            source = source_pb2.Source(
                source_id=name,
                kind=source_pb2.SOURCE_KIND_SQLITE,
                url=f"sqlite:///{path}",
                system_id="crm:main",
                tables=["orders"],
            )
            await sources.CreateSource(
                source_service_pb2.CreateSourceRequest(request_id=name, source=source)
            )

        async def are_shared_by(count: int) -> bool:
            assert len(await shared(db, METADATA, "source", count)) == COUNT
            return True

        async def carry(number: int) -> bool:
            for path in files.values():
                await asyncio.to_thread(write, path, number)
            for name in names:
                await eventually(lambda name=name: has(kafka, name, number), timeout=30)
            return True

        await eventually(lambda: are_shared_by(1))
        await carry(1)
        async with process() as other:
            await eventually(lambda: are_shared_by(2), timeout=30)
            await carry(2)
            # Deleted at one process: whoever has it clears it away.
            gone = names.pop()
            path = files.pop(gone)
            await other.DeleteSource(
                source_service_pb2.DeleteSourceRequest(request_id="gone", source_id=gone)
            )
            await eventually(lambda: not captured(path), timeout=30)
        await carry(3)
    server.drop(url)


async def has(kafka: str, name: str, number: int) -> bool:
    """Whether a source's rows 1 … number are on Kafka, each as one event."""
    rows = await read_rows(kafka, f"deskwire.changes.{name}.orders")
    found = sorted(row["data"]["key"]["number"] for row in rows)
    assert found == list(range(1, number + 1))
    return True
