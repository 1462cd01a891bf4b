"""Leadership: at most one process does a thing on a database, and it knows when it no longer does.

PostgreSQL: a session advisory lock on a connection of its own. MariaDB/MySQL: GET_LOCK, likewise. SQLite: a
lock file beside the database. When the connection of the lock breaks, the server gives the lock away, so the
leader must stop: `lease.lost` says so. Whatever a leader does must stay right if two overlap for a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from deskwire_common.db import Database, file_of, translate_errors
from deskwire_common.errors import Aborted, FailedPrecondition, Unavailable
from deskwire_common.logging import get_logger


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


@contextlib.asynccontextmanager
async def lead(
    db: Database, name: str, *, wait: bool = True, poll: float = 1.0, check: float = 1.0
) -> AsyncIterator[Lease]:
    """Lead `name` on a database while the block runs; at most one process does.

    With `wait` it asks every `poll` seconds and outlasts a database that is away; else it raises
    FailedPrecondition when another leads, Unavailable when the database doesn't answer. `lease.lost` is set
    when the lock's connection breaks, which is looked at every `check` seconds.
    """
    while (lease := await _taken(db, name, wait=wait, check=check)) is None:
        await asyncio.sleep(poll)
    get_logger().info("leadership_taken", name=name)
    try:
        yield lease
    finally:
        await lease.release()


async def _taken(db: Database, name: str, *, wait: bool, check: float) -> Lease | None:
    try:
        lease = await _try(db, name, check)
    except Unavailable:
        if not wait:
            raise
        return None
    if lease is None and not wait:
        raise FailedPrecondition(f"another process already leads {name} on {db.redacted_url}")
    return lease


async def _try(db: Database, name: str, check: float) -> Lease | None:
    if db.dialect == "sqlite":
        descriptor = lock_file(lock_path(db, name))
        return None if descriptor is None else _FileLease(name, descriptor)
    engine = db.single_connection_engine()
    if db.dialect == "postgresql":
        key = lock_number(name)
        take: sa.Executable = sa.text("SELECT pg_try_advisory_lock(:key)").bindparams(key=key)
        # The lock lives as long as the session: an answer is the proof.
        still: sa.Executable = sa.text("SELECT 1")
    else:
        text = lock_name(db.url, name)
        take = sa.text("SELECT GET_LOCK(:name, 0)").bindparams(name=text)
        still = sa.text("SELECT IS_USED_LOCK(:name) = CONNECTION_ID()").bindparams(name=text)
    connection: AsyncConnection | None = None
    try:
        with translate_errors():
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


def lock_path(db: Database, name: str) -> Path:
    """The lock file of a name beside a SQLite database."""
    database = file_of(db)
    return database.with_name(f"{database.name}.{name}.lock")


def lock_file(path: Path) -> int | None:
    """Take the lock file without waiting; its descriptor, or None when somebody (also this process) has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def lock_number(name: str) -> int:
    """A signed 64-bit key for PostgreSQL's advisory locks, which belong to one database."""
    return int.from_bytes(
        hashlib.sha256(f"deskwire:{name}".encode()).digest()[:8], "big", signed=True
    )


def lock_name(url: URL, name: str) -> str:
    """A lock name of at most 64 characters; GET_LOCK is shared by all databases of a MariaDB server."""
    digest = hashlib.sha256(f"{url.database}:{name}".encode()).hexdigest()
    return f"deskwire:{digest[:40]}"
