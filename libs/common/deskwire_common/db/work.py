"""Units of work: one transaction each, rolled back unless it is committed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common.db.errors import (
    CommitInDoubt,
    WriteConflict,
    driver_errors,
    is_conflict,
    is_connection_lost,
)
from deskwire_common.errors import FailedPrecondition
from deskwire_common.logging import get_logger

if TYPE_CHECKING:
    import psycopg


class UnitOfWork:
    """One transaction. It rolls back unless `commit` was awaited."""

    __slots__ = ("_callbacks", "committed", "connection", "dialect")

    def __init__(self, connection: AsyncConnection, dialect: str) -> None:
        self.connection = connection
        self.dialect = dialect
        self.committed = False
        self._callbacks: list[Callable[[], None]] = []

    async def execute(
        self,
        statement: sa.Executable,
        params: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> sa.CursorResult[Any]:
        """Run one statement; a sequence of `params` runs it once for each. Raises SQLAlchemy's errors."""
        result = await self.connection.execute(statement, params)
        return cast("sa.CursorResult[Any]", result)

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the event loop right after a successful commit; it must not block or raise."""
        self._callbacks.append(callback)

    async def commit(self) -> None:
        """Commit, then run the `after_commit` callbacks.

        Raises CommitInDoubt when the connection broke while the server was committing, WriteConflict when the
        server says that it did not commit.
        """
        try:
            await self.connection.commit()
        except (DBAPIError, OSError) as error:
            if is_conflict(error):
                raise WriteConflict(
                    "two transactions collided; try again", retry_after=0.05
                ) from error
            if is_connection_lost(error):
                raise CommitInDoubt("the database went away during the commit") from error
            raise
        self.committed = True
        for callback in self._callbacks:
            try:
                callback()
            except Exception:  # noqa: BLE001 - the commit happened; a late listener can't undo it
                get_logger().exception("after_commit_failed")
        self._callbacks.clear()


@contextlib.asynccontextmanager
async def raw_psycopg(uow: UnitOfWork) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """The psycopg connection of a PostgreSQL unit of work, in the same transaction (COPY, pipelines, unnest)."""
    if uow.dialect != "postgresql":
        raise FailedPrecondition(f"not a PostgreSQL database but {uow.dialect}")
    # A DBAPI call through SQLAlchemy makes the driver send BEGIN, which it does at the first statement.
    raw = await uow.connection.get_raw_connection()
    with driver_errors():
        yield cast("psycopg.AsyncConnection[Any]", raw.driver_connection)
