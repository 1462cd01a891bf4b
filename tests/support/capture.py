"""A source's reader by itself: what it reads of a database, without Kafka and without chat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pymysql

from deskwire_cdc.domain.changes import Batch, Change
from deskwire_cdc.domain.sources import Source, State
from deskwire_cdc.sources import Reader, ReaderOptions, open_reader
from deskwire_common.clock import SystemClock
from deskwire_common.ids import RandomIds
from deskwire_common.targets import Targets, parse_rules
from support.servers import DatabaseServer

#: A table that each captured database of these tests has: its row says that everything before it was read.
MARKER = "marker"


def source_of(url: str, *tables: str, **fields: Any) -> Source:
    """Return a source as `CreateSource` would make it."""
    parts = urlsplit(url)
    maria = parts.scheme != "sqlite"
    values: dict[str, Any] = {
        "tenant_id": "t",
        "source_id": "crm",
        "incarnation": RandomIds().uuid7(),
        "kind": "mariadb" if maria else "sqlite",
        "url": urlunsplit(parts._replace(scheme="mariadb")) if maria else url,
        "system_id": "crm:main",
        "tables": tables,
        "customer_rule": None,
        "snapshot": True,
        "created_at": 0,
        "version": 1,
        "state": State.STREAMING,
        **fields,
    }
    return Source(**values)


def reader_of(source: Source, **options: Any) -> Reader:
    """Return its reader; databases on this machine may be called."""
    targets = Targets(parse_rules("127.0.0.0/8:*"))
    return open_reader(source, ReaderOptions(clock=SystemClock(), targets=targets, **options))


async def batches_until(
    reader: Reader, position: str, enough: Callable[[Sequence[Batch]], bool]
) -> list[Batch]:
    """Return the batches after a position, as soon as there are enough. Raises what the reader raises."""
    found: list[Batch] = []
    async with asyncio.timeout(60), aclosing(reader.batches(position)) as batches:
        async for batch in batches:
            found.append(batch)
            if enough(found):
                break
    return found


def has_marker(batches: Sequence[Batch]) -> bool:
    """Whether the marker's row is there."""
    return any(change.table == MARKER for change in batches[-1].changes)


def changes_of(batches: Sequence[Batch]) -> list[Change]:
    """Return all changes but the marker's."""
    return [each for batch in batches for each in batch.changes if each.table != MARKER]


class Crm:
    """A database of its own on a MariaDB, with a marker."""

    def __init__(self, server: DatabaseServer) -> None:
        self._server = server
        self.url = server.fresh()
        self.database = urlsplit(self.url).path.strip("/")
        self.run(f"CREATE TABLE {MARKER} (id INT AUTO_INCREMENT PRIMARY KEY)")

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements in one session; return the last one's rows."""
        parts = urlsplit(self.url)
        with pymysql.connect(
            host=parts.hostname,
            port=parts.port or 3306,
            user=parts.username,
            password=parts.password or "",
            database=self.database,
            charset="utf8mb4",
            autocommit=True,
        ) as connection:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    async def streamed(
        self, *statements: str, tables: Sequence[str], **options: Any
    ) -> list[Batch]:
        """Return the batches of what these statements do, up to a marker after them."""
        reader = reader_of(source_of(self.url, *tables, MARKER), **options)
        try:
            position = await reader.start_position()
            await asyncio.to_thread(self.run, *statements)
            await asyncio.to_thread(self.run, f"INSERT INTO {MARKER} VALUES ()")
            return await batches_until(reader, position, has_marker)
        finally:
            await reader.close()

    def drop(self) -> None:
        """Drop the database."""
        self._server.drop(self.url)


async def snapshot_of(reader: Reader) -> list[Change]:
    """Return the rows that a reader's snapshot finds."""
    found: list[Change] = []
    cursor = reader.first_cursor()
    while cursor:
        chunk = await reader.snapshot_chunk(cursor, "0-1-1")
        found += chunk.changes
        cursor = chunk.cursor
    return found
