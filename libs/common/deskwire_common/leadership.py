"""Leadership: at most one process does a thing on a database, and it knows when it no longer does.

PostgreSQL: a session advisory lock on a connection of its own. MariaDB/MySQL: GET_LOCK, likewise. SQLite: a
lock file beside the database. When the connection of the lock breaks, the server gives the lock away, so the
leader must stop: `lease.lost` says so. Whatever a leader does must stay right if two overlap for a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from deskwire_common import db as dbs
from deskwire_common.errors import Aborted, FailedPrecondition, Unavailable
from deskwire_common.logging import get_logger

if TYPE_CHECKING:
    from deskwire_common.db import Database


class Lease:
    """The right to lead, until it is lost or released.

    `lost` is set at most (check + 3) seconds after the lock's connection broke.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.lost = asyncio.Event()

    @property
    def held(self) -> bool:
        """Is this process still the leader, as far as it knows?"""
        return not self.lost.is_set()

    def ensure(self) -> None:
        """Raise Aborted when leadership is lost."""
        if self.lost.is_set():
            raise Aborted(f"leadership of {self.name} is lost")

    async def release(self) -> None:
        """Give the leadership back."""
        self.lost.set()


class _FileLease(Lease):
    def __init__(self, name: str, descriptor: int) -> None:
        super().__init__(name)
        self._descriptor = descriptor

    async def release(self) -> None:
        if not self.lost.is_set():
            self.lost.set()
            os.close(self._descriptor)


class _SessionLease(Lease):
    def __init__(
        self, name: str, engine: AsyncEngine, connection: AsyncConnection, still: sa.Executable
    ) -> None:
        super().__init__(name)
        self._engine = engine
        self._connection = connection
        self._still = still
        self._watch: asyncio.Task[None] | None = None

    def watch(self, check: float) -> None:
        self._watch = asyncio.create_task(self._watching(check), name=f"lease-{self.name}")

    async def _watching(self, check: float) -> None:
        while True:
            await asyncio.sleep(check)
            try:
                async with asyncio.timeout(3):
                    held = (await self._connection.execute(self._still)).scalar()
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                get_logger().warning("leadership_lost", name=self.name, error=type(error).__name__)
                self.lost.set()
                return
            if not held:
                get_logger().warning("leadership_lost", name=self.name, error="lock not held")
                self.lost.set()
                return

    async def release(self) -> None:
        self.lost.set()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        # Closing the session gives the lock back; a broken one has none to give.
        with contextlib.suppress(SQLAlchemyError, OSError, TimeoutError):
            async with asyncio.timeout(3):
                await self._connection.close()
        await self._engine.dispose()


def lock_path(database_file: Path, name: str) -> Path:
    """The lock file of a name beside a SQLite database."""
    return database_file.with_name(f"{database_file.name}.{name}.lock")


async def acquire(
    db: Database, name: str, *, wait: bool = True, poll: float = 1.0, check: float = 1.0
) -> Lease:
    """Become the leader of `name`; prefer `db.leader(name)`, which releases.

    With `wait` it asks every `poll` seconds and outlasts a database that is away; else it raises
    FailedPrecondition when another leads, Unavailable when the database doesn't answer.
    """
    while True:
        try:
            lease = await _try(db, name, check)
        except Unavailable:
            if not wait:
                raise
            lease = None
        if lease is not None:
            get_logger().info("leadership_taken", name=name)
            return lease
        if not wait:
            raise FailedPrecondition(f"another process already leads {name} on {db.redacted_url}")
        await asyncio.sleep(poll)


async def _try(db: Database, name: str, check: float) -> Lease | None:
    if db.dialect == "sqlite":
        descriptor = dbs.lock_file(lock_path(dbs.file_of(db), name))
        return None if descriptor is None else _FileLease(name, descriptor)
    engine = db.single_connection_engine()
    if db.dialect == "postgresql":
        key = dbs.lock_number(name)
        take: sa.Executable = sa.text("SELECT pg_try_advisory_lock(:key)").bindparams(key=key)
        # The lock lives as long as the session: an answer is the proof.
        still: sa.Executable = sa.text("SELECT 1")
    else:
        text = dbs.lock_name(db.url, name)
        take = sa.text("SELECT GET_LOCK(:name, 0)").bindparams(name=text)
        still = sa.text("SELECT IS_USED_LOCK(:name) = CONNECTION_ID()").bindparams(name=text)
    connection: AsyncConnection | None = None
    try:
        with dbs.translate_errors():
            connection = await engine.connect()
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            taken = (await connection.execute(take)).scalar()
        if taken:
            lease = _SessionLease(name, engine, connection, still)
            lease.watch(check)
            return lease
    except BaseException:
        if connection is not None:
            await connection.close()
        await engine.dispose()
        raise
    await connection.close()
    await engine.dispose()
    return None
