"""A database of a service: a way to write, and a way to read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import NullPool

from deskwire_common.db.engines import engines, make_engine, normalize_url
from deskwire_common.db.errors import ConnectionLost, WriteConflict, translate_errors
from deskwire_common.db.single import Statements
from deskwire_common.db.work import UnitOfWork
from deskwire_common.errors import FailedPrecondition
from deskwire_common.logging import get_logger
from deskwire_common.loops import Backoff

T = TypeVar("T")

MAX_ATTEMPTS: Final = 5
_AFTER_CONFLICT: Final = 0.03
_AFTER_LOSS: Final = 0.3
_LONGEST_PAUSE: Final = 4.0
"""Seconds between the tries of a transaction."""
_LAST_CHECKOUTS: Final = 5.0
"""Seconds for which closing waits for checkouts whose caller was cancelled."""


class Database:
    """A database of a service: a pool for writes, and a way to read."""

    def __init__(self, url: URL, writer: AsyncEngine, reader: AsyncEngine) -> None:
        self.url = url
        self.engine = writer
        self._reader = reader
        self.dialect: str = url.get_backend_name()
        # Waiters of an asyncio.Lock are served in their order: the writer queue of a SQLite file.
        self._writer_queue: asyncio.Lock | None = (
            asyncio.Lock() if self.dialect == "sqlite" else None
        )
        self._abandoned: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(
        cls,
        url: str | URL,
        *,
        pool_size: int = 8,
        statement_timeout: float = 15.0,
        lock_timeout: float = 5.0,
        pool_timeout: float = 10.0,
    ) -> Database:
        """Connect. Timeouts in seconds. Raises Unavailable when the database doesn't answer."""
        parsed = normalize_url(url)
        database = cls(
            parsed,
            *engines(
                parsed,
                pool_size=pool_size,
                statement_timeout=statement_timeout,
                lock_timeout=lock_timeout,
                pool_timeout=pool_timeout,
            ),
        )
        try:
            async with database.read() as connection:
                await connection.execute(sa.text("SELECT 1"))
        except BaseException:
            await database.close()
            raise
        return database

    def statements(self) -> Statements:
        """A connection for one owner that writes all the time. Raises FailedPrecondition unless it is PostgreSQL."""
        if self.dialect != "postgresql":
            raise FailedPrecondition(f"not a PostgreSQL database but {self.dialect}")
        return Statements(self._reader)

    async def close(self) -> None:
        """Close all connections, also those that a cancelled caller had asked for."""
        if self._abandoned:
            await asyncio.wait(self._abandoned, timeout=_LAST_CHECKOUTS)
        await self.engine.dispose()
        await self._reader.dispose()

    @property
    def redacted_url(self) -> str:
        """The URL without its password, for logs."""
        return self.url.render_as_string(hide_password=True)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[UnitOfWork]:
        """One write transaction; rolls back unless `await uow.commit()`.

        Raises Unavailable (WriteConflict, ConnectionLost, CommitInDoubt) in place of the driver's errors of that
        kind; other errors of the block pass through after the rollback. On SQLite it waits for its turn at the
        one writer.
        """
        async with contextlib.AsyncExitStack() as stack:
            if self._writer_queue is not None:
                await stack.enter_async_context(self._writer_queue)
            with translate_errors():
                async with self._connected(self.engine) as connection:
                    await connection.begin()
                    # Leaving the block rolls back whatever was not committed.
                    yield UnitOfWork(connection, self.dialect)

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading only. Statements on PostgreSQL run in autocommit: one round trip each."""
        with translate_errors():
            async with self._connected(self._reader) as connection:
                yield connection

    async def run(
        self, work: Callable[[UnitOfWork], Awaitable[T]], *, attempts: int = MAX_ATTEMPTS
    ) -> T:
        """Run `work` in a transaction and commit; on a deadlock, lock timeout or lost connection run it again.

        `work` may run several times, each time in a fresh transaction, so it must keep its effects in the
        database. After `attempts` tries the last Unavailable is raised. A commit in doubt isn't retried.
        """
        backoff: Backoff | None = None
        for attempt in range(1, attempts + 1):
            try:
                async with self.transaction() as uow:
                    result = await work(uow)
                    if not uow.committed:
                        await uow.commit()
                    return result
            except (WriteConflict, ConnectionLost) as error:
                if attempt == attempts:
                    raise
                get_logger().info(
                    "transaction_retried", attempt=attempt, cause=type(error).__name__
                )
                if backoff is None:
                    conflict = isinstance(error, WriteConflict)
                    backoff = Backoff(_AFTER_CONFLICT if conflict else _AFTER_LOSS, _LONGEST_PAUSE)
                await backoff.pause()
        raise AssertionError("unreachable")  # pragma: no cover

    def single_connection_engine(self) -> AsyncEngine:
        """An engine without a pool, for connections that are held: locks and migrations. Dispose it yourself."""
        return make_engine(self.url, statement_timeout=0, lock_timeout=0, poolclass=NullPool)

    @contextlib.asynccontextmanager
    async def _connected(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        """A connection of the pool.

        SQLAlchemy loses a connection whose checkout is cancelled: the pool would lack it until the garbage collector
        finds it. So a cancelled checkout goes on in the background, and its connection is given back.
        """
        connection = engine.connect()
        starting = asyncio.create_task(connection.start())
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            giving_back = asyncio.create_task(_give_back(starting))
            self._abandoned.add(giving_back)
            giving_back.add_done_callback(self._abandoned.discard)
            raise
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_exit(connection)
            yield connection


async def _give_back(starting: asyncio.Task[AsyncConnection]) -> None:
    with contextlib.suppress(sa.exc.SQLAlchemyError, OSError):
        await (await starting).close()


def file_of(db: Database | URL) -> Path:
    """The file of a SQLite database."""
    url = db.url if isinstance(db, Database) else db
    return Path(str(url.database)).absolute()
