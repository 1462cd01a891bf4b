"""A PostgreSQL connection of one owner, for statements that commit themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, LiteralString, cast

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from deskwire_common.db.errors import (
    CommitInDoubt,
    ConnectionLost,
    driver_errors,
    translate_errors,
)

if TYPE_CHECKING:
    import psycopg


class Statements:
    """A PostgreSQL connection that stays with one owner, for single statements that commit themselves.

    The pool, a transaction and SQLAlchemy's own work cost four times as much as a small statement. One call at a time.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._connection: AsyncConnection | None = None
        self._driver: psycopg.AsyncConnection[Any] | None = None

    async def run(self, sql: LiteralString, params: Sequence[Any]) -> int:
        """Run a statement, and return how many rows it wrote. psycopg prepares statements that are repeated.

        Raises as `Database.transaction` and its commit do; a connection that broke is replaced at the next call.
        """
        with translate_errors():
            try:
                if self._driver is None:
                    self._connection = self._engine.connect()
                    await self._connection.start()
                    raw = await self._connection.get_raw_connection()
                    self._driver = cast("psycopg.AsyncConnection[Any]", raw.driver_connection)
            except BaseException:
                await self.close()
                raise
        driver = self._driver
        try:
            with translate_errors(), driver_errors():
                return (await driver.execute(sql, params)).rowcount
        except ConnectionLost as error:
            await self.close()
            raise CommitInDoubt("the database went away during a statement") from error
        except BaseException:
            if driver.broken:
                await self.close()
            raise

    async def close(self) -> None:
        """Give the connection back; the next `run` takes another one."""
        connection, self._connection, self._driver = self._connection, None, None
        if connection is None:
            return
        with contextlib.suppress(DBAPIError, OSError):
            if connection.sync_connection is not None:
                # SQLAlchemy itself must find that a connection broke, so that it discards the others of its pool.
                await connection.exec_driver_sql("SELECT 1")
        with contextlib.suppress(DBAPIError, OSError):
            await connection.close()
