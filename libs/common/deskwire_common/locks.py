"""Locks: for short work (a migration), and for a SQLite file, whose processes share one machine.

PostgreSQL: a session's advisory lock on a connection of its own. MariaDB/MySQL: GET_LOCK, likewise. SQLite: a lock file
beside the database, which the kernel frees when the process ends in whatever way. Leases, not these locks, decide what
running services own (ownership): the session of a node that lost power keeps its lock until the server's TCP keepalive
notices. That takes 11 s on PostgreSQL, as asked for here, and on MariaDB what the machine has set (2 h).
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
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common.db import AWAY, Database, file_of, translate_errors
from deskwire_common.errors import FailedPrecondition, Unavailable

_KEEPALIVES = (
    "SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3"
)


@contextlib.asynccontextmanager
async def locked(
    db: Database, name: str, *, wait: bool = True, poll: float = 1.0
) -> AsyncIterator[None]:
    """Hold the lock `name` of a database while the block runs; at most one holder does.

    With `wait` it asks every `poll` seconds and outlasts a database that is away; else it raises
    FailedPrecondition when another has it, Unavailable when the database doesn't answer.
    """
    async with contextlib.AsyncExitStack() as stack:
        while not await _taken(stack, db, name, wait=wait):
            await asyncio.sleep(poll)
        yield


async def _taken(stack: contextlib.AsyncExitStack, db: Database, name: str, *, wait: bool) -> bool:
    try:
        taken = (
            _take_file(stack, db, name) if db.dialect == "sqlite" else await _take(stack, db, name)
        )
    except Unavailable:
        if not wait:
            raise
        return False
    if not taken and not wait:
        raise FailedPrecondition(f"another process already has {name} on {db.redacted_url}")
    return taken


def _take_file(stack: contextlib.AsyncExitStack, db: Database, name: str) -> bool:
    descriptor = lock_file(lock_path(db, name))
    if descriptor is not None:
        stack.callback(os.close, descriptor)
    return descriptor is not None


async def _take(stack: contextlib.AsyncExitStack, db: Database, name: str) -> bool:
    async with contextlib.AsyncExitStack() as closing:
        engine = db.single_connection_engine()
        closing.push_async_callback(engine.dispose)
        with translate_errors():
            connection = await engine.connect()
            # Closing the session frees the lock; a broken session has none.
            closing.push_async_callback(_close, connection)
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            if db.dialect == "postgresql":
                await connection.exec_driver_sql(_KEEPALIVES)
            taken = bool((await connection.execute(_statement(db, name))).scalar())
        if taken:
            stack.push_async_callback(closing.pop_all().aclose)
        return taken


async def _close(connection: AsyncConnection) -> None:
    with contextlib.suppress(*AWAY):
        async with asyncio.timeout(3):
            await connection.close()


def _statement(db: Database, name: str) -> sa.Executable:
    if db.dialect == "postgresql":
        return sa.text("SELECT pg_try_advisory_lock(:key)").bindparams(key=lock_number(name))
    return sa.text("SELECT GET_LOCK(:name, 0)").bindparams(name=lock_name(db.url, name))


def lock_path(db: Database, name: str) -> Path:
    """The lock file of a name beside a SQLite database."""
    database = file_of(db)
    return database.with_name(f"{database.name}.{name}.lock")


def lock_file(path: Path) -> int | None:
    """Take the lock file without waiting; return its descriptor, or None when some process, even this one, has it."""
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
