"""What a failed statement means: a conflict, a lost connection, a commit in doubt."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any, Final, cast

import sqlalchemy as sa
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from deskwire_common.errors import DeskwireError, InvalidArgument, Unavailable

# PostgreSQL: serialization_failure, deadlock_detected, lock_not_available.
_PG_RETRY: Final = frozenset({"40001", "40P01", "55P03"})
# PostgreSQL: statement cancelled by statement_timeout; transaction ended as it was idle; server shutting down or
# starting; too many clients.
_PG_UNAVAILABLE: Final = frozenset({"57014", "25P03", "57P01", "57P02", "57P03", "53300"})
# MySQL/MariaDB: ER_LOCK_WAIT_TIMEOUT, ER_LOCK_DEADLOCK, ER_CHECKREAD (record changed since last read).
_MY_RETRY: Final = frozenset({1205, 1213, 1020})
# MySQL/MariaDB: connection refused, gone away, lost, killed, shutdown, too many connections, statement timeouts.
_MY_UNAVAILABLE: Final = frozenset(
    {1040, 1053, 1927, 1969, 2002, 2003, 2006, 2013, 2014, 2055, 3024}
)
_MY_DUPLICATE: Final = 1062
_SQLITE_UNIQUE: Final = frozenset(
    {
        sqlite3.SQLITE_CONSTRAINT_UNIQUE,
        sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
        sqlite3.SQLITE_CONSTRAINT_ROWID,
    }
)


AWAY: Final[tuple[type[Exception], ...]] = (DeskwireError, sa.exc.SQLAlchemyError, OSError)
"""The errors of work whose database, or something else that it needs, is away. Loops outlast them."""


class WriteConflict(Unavailable):
    """Two transactions got in each other's way (deadlock, lock timeout); nothing was written. `run` retries it."""


class ConnectionLost(Unavailable):
    """The database went away before COMMIT was sent; nothing was written. `run` retries it."""


class CommitInDoubt(Unavailable):
    """The database went away during COMMIT: it may or may not have happened. Never retried blindly."""


def _mysql_code(orig: BaseException | None) -> int | None:
    code = orig.args[0] if orig is not None and orig.args else None
    return code if isinstance(code, int) else None


def is_unique_violation(error: BaseException) -> bool:
    """Whether it is a violation of a primary or unique key. (True for SQLAlchemy's exception, on every dialect.)"""
    if not isinstance(error, IntegrityError):
        return False
    orig = error.orig
    if isinstance(orig, sqlite3.Error):
        return getattr(orig, "sqlite_errorcode", None) in _SQLITE_UNIQUE
    sqlstate = getattr(orig, "sqlstate", None)
    return bool(sqlstate == "23505" or _mysql_code(orig) == _MY_DUPLICATE)


def is_division_by_zero(error: DataError) -> bool:
    """Whether a PostgreSQL statement divided by zero."""
    return getattr(error.orig, "sqlstate", None) == "22012"


def is_conflict(error: BaseException) -> bool:
    """Whether it is a deadlock, serialisation failure or lock timeout, after which the same transaction may succeed."""
    if not isinstance(error, DBAPIError):
        return False
    orig = error.orig
    if isinstance(orig, sqlite3.Error):
        code = getattr(orig, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
    sqlstate = getattr(orig, "sqlstate", None)
    return bool(sqlstate in _PG_RETRY or _mysql_code(orig) in _MY_RETRY)


def is_connection_lost(error: BaseException) -> bool:
    """Whether the database is away (refused, gone, shutting down, or slower than the statement timeout)."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, PoolTimeoutError | OSError)
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    orig = error.orig
    if isinstance(orig, sqlite3.Error):
        return getattr(orig, "sqlite_errorcode", None) == sqlite3.SQLITE_CANTOPEN
    sqlstate = getattr(orig, "sqlstate", None)
    if isinstance(sqlstate, str):
        return sqlstate in _PG_UNAVAILABLE or sqlstate.startswith("08")
    if (code := _mysql_code(orig)) is not None:
        return code in _MY_UNAVAILABLE
    # psycopg's errors of the connection itself (refused, broken pipe) carry no SQLSTATE.
    return type(orig).__name__ == "OperationalError"


def _translate(error: BaseException) -> DeskwireError | None:
    if isinstance(error, DataError) and "NUL" in str(error.orig):
        # psycopg's own error, which has no code.
        return InvalidArgument("text may not hold the character NUL (U+0000)")
    if is_conflict(error):
        return WriteConflict("two transactions collided; try again", retry_after=0.05)
    if is_connection_lost(error):
        return ConnectionLost("the database doesn't answer", retry_after=1.0)
    return None


@contextlib.contextmanager
def translate_errors() -> Any:
    """Turn deadlocks and lost connections into `Unavailable`, a NUL that PostgreSQL doesn't store into
    `InvalidArgument`; every other error passes as it is.
    """
    try:
        yield
    except (DBAPIError, PoolTimeoutError, OSError) as error:
        translated = _translate(error)
        if translated is None:
            raise
        raise translated from error


@contextlib.contextmanager
def driver_errors() -> Iterator[None]:
    """Turn psycopg's own errors into SQLAlchemy's, which the other functions here expect."""
    import psycopg  # noqa: PLC0415 (only where PostgreSQL is used)

    try:
        yield
    except psycopg.Error as error:
        raise cast(
            "DBAPIError",
            DBAPIError.instance(None, None, error, psycopg.Error, hide_parameters=True),
        ) from error
