"""Engines: how each dialect is opened, and the settings of its connections."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from deskwire_common.errors import InvalidArgument

DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+asyncmy",
}
_STRICT_MODE: Final = "STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO"
_IDLE_IN_TRANSACTION: Final = 10
"""Seconds after which the server ends a transaction whose client is silent: this frees the locks of a dead node."""


def normalize_url(url: str | URL) -> URL:
    """Turn `sqlite:///…`, `postgresql://…`, `mysql://…` or `mariadb://…` into the URL with the async driver.

    Raises InvalidArgument for anything else, and for SQLite without a file: it wouldn't be durable.
    """
    try:
        parsed = make_url(url)
    except sa.exc.ArgumentError as error:
        raise InvalidArgument("the database URL can't be read", field="database_url") from error
    backend = parsed.drivername.partition("+")[0]
    backend = {"postgres": "postgresql", "mariadb": "mysql"}.get(backend, backend)
    if backend not in DRIVERS:
        raise InvalidArgument(
            f"unknown database {backend!r}: use sqlite, postgresql, mysql or mariadb",
            field="database_url",
        )
    if backend == "sqlite" and parsed.database in {None, "", ":memory:"}:
        raise InvalidArgument(
            "a SQLite URL needs a file: sqlite:////path/to/file", field="database_url"
        )
    return parsed.set(drivername=DRIVERS[backend])


def engines(
    url: URL, *, pool_size: int, statement_timeout: float, lock_timeout: float, pool_timeout: float
) -> tuple[AsyncEngine, AsyncEngine]:
    """Make the engines for writing and for reading of a database; the same one may be both."""
    timeouts: dict[str, Any] = {
        "statement_timeout": statement_timeout,
        "lock_timeout": lock_timeout,
    }
    if url.get_backend_name() == "sqlite":
        writer = make_engine(
            url, **timeouts, pool_size=1, max_overflow=0, pool_timeout=pool_timeout
        )
        reader = make_engine(
            url,
            **timeouts,
            read_only=True,
            pool_size=min(pool_size, 4),
            max_overflow=0,
            pool_timeout=pool_timeout,
        )
        return writer, reader
    engine = make_engine(
        url,
        **timeouts,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=pool_timeout,
        # MariaDB closes idle connections (wait_timeout); a dead one is also seen at its first statement.
        pool_recycle=1800,
    )
    if url.get_backend_name() == "postgresql":
        return engine, engine.execution_options(isolation_level="AUTOCOMMIT")
    return engine, engine


def make_engine(
    url: URL,
    *,
    statement_timeout: float,
    lock_timeout: float,
    read_only: bool = False,
    **options: Any,
) -> AsyncEngine:
    """Make an engine for a URL of `normalize_url`. Timeouts in seconds, 0: none."""
    match url.get_backend_name():
        case "sqlite":
            return _sqlite_engine(url, lock_timeout=lock_timeout, read_only=read_only, **options)
        case "postgresql":
            return _postgres_engine(
                url, statement_timeout=statement_timeout, lock_timeout=lock_timeout, **options
            )
        case _:
            return _mysql_engine(
                url, statement_timeout=statement_timeout, lock_timeout=lock_timeout, **options
            )


def _sqlite_engine(
    url: URL, *, lock_timeout: float, read_only: bool, **options: Any
) -> AsyncEngine:
    # isolation_level=None: sqlite3 starts no transaction of its own, BEGIN below is the only one.
    engine = create_async_engine(url, connect_args={"isolation_level": None}, **options)

    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={int((lock_timeout or 60) * 1000)}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        if read_only:
            cursor.execute("PRAGMA query_only=ON")
        cursor.close()

    begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"

    @event.listens_for(engine.sync_engine, "begin")
    def begin_transaction(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _postgres_engine(
    url: URL, *, statement_timeout: float, lock_timeout: float, **options: Any
) -> AsyncEngine:
    settings = [
        str(url.query.get("options", "")),
        r"-c default_transaction_isolation=read\ committed",
        f"-c statement_timeout={int(statement_timeout * 1000)}",
        f"-c lock_timeout={int(lock_timeout * 1000)}",
        "-c timezone=UTC",
    ]
    if statement_timeout:
        settings.append(f"-c idle_in_transaction_session_timeout={_IDLE_IN_TRANSACTION * 1000}")
    arguments: dict[str, Any] = {
        "options": " ".join(filter(None, settings)),
        "connect_timeout": 5,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "application_name": url.query.get("application_name", "deskwire"),
    }
    url = url.difference_update_query(["options", "application_name"])
    # Without this option SQLAlchemy doesn't ask psycopg how many rows an INSERT wrote.
    return create_async_engine(
        url, connect_args=arguments, execution_options={"preserve_rowcount": True}, **options
    )


def _mysql_engine(
    url: URL, *, statement_timeout: float, lock_timeout: float, **options: Any
) -> AsyncEngine:
    if "charset" not in url.query:
        url = url.update_query_dict({"charset": "utf8mb4"})
    engine = create_async_engine(url, connect_args={"connect_timeout": 5}, **options)

    @event.listens_for(engine.sync_engine, "connect")
    def set_session(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("SELECT VERSION()")
        mariadb = "mariadb" in str(cursor.fetchone()[0]).lower()
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        idle = _IDLE_IN_TRANSACTION if statement_timeout else 0
        # Seconds for MariaDB and all statements, milliseconds for MySQL and SELECT only.
        timeout = (
            f"max_statement_time={statement_timeout:g}, idle_transaction_timeout={idle}"
            if mariadb
            else f"max_execution_time={int(statement_timeout * 1000)}"
        )
        locks = f"innodb_lock_wait_timeout={max(1, int(lock_timeout))}, " if lock_timeout else ""
        # Only the constants above and numbers of settings get here, nothing of a request.
        cursor.execute(
            f"SET SESSION {locks}{timeout}, sql_mode='{_STRICT_MODE}', time_zone='+00:00'"
        )
        cursor.close()

    return engine
