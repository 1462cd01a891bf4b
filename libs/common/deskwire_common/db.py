"""Databases: one way to write, read, retry and lead on SQLite, PostgreSQL and MariaDB/MySQL.

The rules of docs/architecture.md that live here: units of work roll back unless they are committed; every
write transaction of a SQLite file goes through one connection (`BEGIN IMMEDIATE`, WAL, `synchronous=FULL`);
isolation is READ COMMITTED elsewhere; times are BIGINT microseconds; ids compare by their bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, LiteralString, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from deskwire_common.errors import DeskwireError, FailedPrecondition, InvalidArgument, Unavailable
from deskwire_common.logging import get_logger

if TYPE_CHECKING:
    import psycopg

T = TypeVar("T")

MAX_ATTEMPTS: Final = 5
DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+asyncmy",
}
_NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "pk": "pk_%(table_name)s",
}
_STRICT_MODE: Final = "STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO"
_IDLE_IN_TRANSACTION: Final = 10
"""Seconds after which the server ends a transaction whose client says nothing: what a dead node locked is free then."""
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
"""What work with a database raises when it, or something else that is needed, is away: loops outlast it."""


class WriteConflict(Unavailable):
    """Two transactions got in each other's way (deadlock, lock timeout); nothing was written. `run` retries it."""


class ConnectionLost(Unavailable):
    """The database went away before COMMIT was sent; nothing was written. `run` retries it."""


class CommitInDoubt(Unavailable):
    """The database went away during COMMIT: it may or may not have happened. Never retried blindly."""


# -- column types -----------------------------------------------------------------------------------------


def binary_text(length: int) -> sa.types.TypeEngine[str]:
    """Text of up to `length` characters that compares and sorts by its bytes on every dialect."""
    return (
        sa.String(length)
        .with_variant(mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), "mysql")
        .with_variant(postgresql.VARCHAR(length, collation="C"), "postgresql")
    )


def ascii_text(length: int) -> sa.types.TypeEngine[str]:
    """ASCII of up to `length` characters (one byte each in an index on MariaDB), compared by its bytes."""
    return (
        sa.String(length)
        .with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql")
        .with_variant(postgresql.VARCHAR(length, collation="C"), "postgresql")
    )


#: A UUID in its 36 characters.
Id: Final = ascii_text(36)
#: A tenant, subject, system id, agent id …: up to 64 ASCII characters.
Name: Final = ascii_text(64)
#: Microseconds since 1970-01-01 UTC.
Micros: Final = sa.BigInteger()
#: An unsigned 32-bit number of the contract (seq, version, sequence).
UInt32: Final = sa.BigInteger()
#: Bytes, up to 16 MiB.
Blob: Final = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql")
#: Long text, for people or for JSON, up to 16 MiB.
LongText: Final = sa.Text().with_variant(
    mysql.MEDIUMTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql"
)
#: A generated, growing BIGINT primary key.
AutoId: Final = sa.BigInteger().with_variant(sqlite_dialect.INTEGER(), "sqlite")


def metadata() -> sa.MetaData:
    """A MetaData whose constraint names are the same on every dialect."""
    return sa.MetaData(naming_convention=_NAMING)


# -- URLs and errors --------------------------------------------------------------------------------------


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


def _mysql_code(orig: BaseException | None) -> int | None:
    code = orig.args[0] if orig is not None and orig.args else None
    return code if isinstance(code, int) else None


def is_unique_violation(error: BaseException) -> bool:
    """Is it a violation of a primary or unique key? (True for SQLAlchemy's exception, on every dialect.)"""
    if not isinstance(error, IntegrityError):
        return False
    orig = error.orig
    if isinstance(orig, sqlite3.Error):
        return getattr(orig, "sqlite_errorcode", None) in _SQLITE_UNIQUE
    sqlstate = getattr(orig, "sqlstate", None)
    return bool(sqlstate == "23505" or _mysql_code(orig) == _MY_DUPLICATE)


def is_division_by_zero(error: DataError) -> bool:
    """Did a PostgreSQL statement divide by zero?"""
    return getattr(error.orig, "sqlstate", None) == "22012"


def is_conflict(error: BaseException) -> bool:
    """Is it a deadlock, serialisation failure or lock timeout, after which the same transaction may succeed?"""
    if not isinstance(error, DBAPIError):
        return False
    orig = error.orig
    if isinstance(orig, sqlite3.Error):
        code = getattr(orig, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
    sqlstate = getattr(orig, "sqlstate", None)
    return bool(sqlstate in _PG_RETRY or _mysql_code(orig) in _MY_RETRY)


def is_connection_lost(error: BaseException) -> bool:
    """Is the database not there (refused, gone, shutting down, or slower than the statement timeout)?"""
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
        # psycopg's, which has no code for it.
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


# -- units of work ----------------------------------------------------------------------------------------


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
    # A DBAPI call through SQLAlchemy makes sure that BEGIN is the driver's, which starts at the first statement.
    raw = await uow.connection.get_raw_connection()
    with _driver_errors():
        yield cast("psycopg.AsyncConnection[Any]", raw.driver_connection)


@contextlib.contextmanager
def _driver_errors() -> Iterator[None]:
    """Turn psycopg's own errors into SQLAlchemy's, by which the rest of this module judges."""
    import psycopg  # noqa: PLC0415 (only where PostgreSQL is used)

    try:
        yield
    except psycopg.Error as error:
        raise cast(
            "DBAPIError",
            DBAPIError.instance(None, None, error, psycopg.Error, hide_parameters=True),
        ) from error


class Statements:
    """A PostgreSQL connection that stays with one owner, for single statements that commit themselves.

    The pool, a transaction and SQLAlchemy's own work cost four times as much as a small statement does. One at a time.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._connection: AsyncConnection | None = None
        self._driver: psycopg.AsyncConnection[Any] | None = None

    async def run(self, sql: LiteralString, params: Sequence[Any]) -> int:
        """Run a statement, and return how many rows it wrote. psycopg prepares what comes again and again.

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
            with translate_errors(), _driver_errors():
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
                # What broke is found out by SQLAlchemy itself, so that it throws away what else is in its pool.
                await connection.exec_driver_sql("SELECT 1")
        with contextlib.suppress(DBAPIError, OSError):
            await connection.close()


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
            *_engines(
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
        """A connection for an owner who writes all the time. Raises FailedPrecondition where it isn't PostgreSQL."""
        if self.dialect != "postgresql":
            raise FailedPrecondition(f"not a PostgreSQL database but {self.dialect}")
        return Statements(self._reader)

    async def close(self) -> None:
        """Close all connections."""
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
                async with _connected(self.engine) as connection:
                    await connection.begin()
                    # Leaving the block rolls back whatever was not committed.
                    yield UnitOfWork(connection, self.dialect)

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading only. Statements on PostgreSQL run in autocommit: one round trip each."""
        with translate_errors():
            async with _connected(self._reader) as connection:
                yield connection

    async def run(
        self, work: Callable[[UnitOfWork], Awaitable[T]], *, attempts: int = MAX_ATTEMPTS
    ) -> T:
        """Run `work` in a transaction and commit; on a deadlock, lock timeout or lost connection run it again.

        `work` may run several times, each time in a fresh transaction, so it must keep its effects in the
        database. After `attempts` tries the last Unavailable is raised. A commit in doubt isn't retried.
        """
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
                base = 0.01 if isinstance(error, WriteConflict) else 0.1
                await asyncio.sleep(base * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
        raise AssertionError("unreachable")  # pragma: no cover

    def single_connection_engine(self) -> AsyncEngine:
        """An engine without a pool, for connections that are held: locks and migrations. Dispose it yourself."""
        return _make_engine(self.url, statement_timeout=0, lock_timeout=0, poolclass=NullPool)


_abandoned: Final[set[asyncio.Task[Any]]] = set()


@contextlib.asynccontextmanager
async def _connected(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection of the pool.

    SQLAlchemy loses one whose checkout is cancelled: the pool would lack it until the garbage collector finds it. So
    the checkout goes on by itself then, and what it got is given back.
    """
    connection = engine.connect()
    starting = asyncio.create_task(connection.start())
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        giving_back = asyncio.create_task(_give_back(starting))
        _abandoned.add(giving_back)
        giving_back.add_done_callback(_abandoned.discard)
        raise
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_exit(connection)
        yield connection


async def _give_back(starting: asyncio.Task[AsyncConnection]) -> None:
    with contextlib.suppress(sa.exc.SQLAlchemyError, OSError):
        await (await starting).close()


def _engines(
    url: URL, *, pool_size: int, statement_timeout: float, lock_timeout: float, pool_timeout: float
) -> tuple[AsyncEngine, AsyncEngine]:
    timeouts: dict[str, Any] = {
        "statement_timeout": statement_timeout,
        "lock_timeout": lock_timeout,
    }
    if url.get_backend_name() == "sqlite":
        writer = _make_engine(
            url, **timeouts, pool_size=1, max_overflow=0, pool_timeout=pool_timeout
        )
        reader = _make_engine(
            url,
            **timeouts,
            read_only=True,
            pool_size=min(pool_size, 4),
            max_overflow=0,
            pool_timeout=pool_timeout,
        )
        return writer, reader
    engine = _make_engine(
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


def _make_engine(
    url: URL,
    *,
    statement_timeout: float,
    lock_timeout: float,
    read_only: bool = False,
    **options: Any,
) -> AsyncEngine:
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
    # Without it SQLAlchemy doesn't ask psycopg how many rows an INSERT wrote.
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
        # The constants above and numbers of settings; nothing of a request gets here.
        cursor.execute(
            f"SET SESSION {locks}{timeout}, sql_mode='{_STRICT_MODE}', time_zone='+00:00'"
        )
        cursor.close()

    return engine


# -- portable statements ----------------------------------------------------------------------------------


async def upsert(
    uow: UnitOfWork,
    table: sa.Table,
    values: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    keys: Sequence[str],
) -> None:
    """Insert `values` (one row or several with the same columns); where `keys` exist, update the other columns."""
    rows = [values] if isinstance(values, Mapping) else list(values)
    if not rows:
        return
    others = [name for name in rows[0] if name not in keys]
    statement: Any
    if uow.dialect == "mysql":
        insert = mysql.insert(table)
        # Without other columns an assignment of a key to itself leaves the row alone.
        names = others or [keys[0]]
        statement = insert.on_duplicate_key_update({name: insert.inserted[name] for name in names})
    else:
        flavour = postgresql.insert if uow.dialect == "postgresql" else sqlite_dialect.insert
        upserting: Any = flavour(table)
        if others:
            statement = upserting.on_conflict_do_update(
                index_elements=list(keys), set_={name: upserting.excluded[name] for name in others}
            )
        else:
            statement = upserting.on_conflict_do_nothing(index_elements=list(keys))
    await uow.execute(statement, [dict(row) for row in rows])


async def insert_if_absent(uow: UnitOfWork, table: sa.Table, values: Mapping[str, Any]) -> bool:
    """Insert one row; False when a unique key has it already. Waits for a concurrent writer of the same key.

    Only a unique violation is forgiven (unlike INSERT IGNORE), and the transaction goes on.
    """
    if uow.dialect == "mysql":
        try:
            await uow.execute(sa.insert(table), dict(values))
        except IntegrityError as error:
            # InnoDB rolls back the statement only.
            if is_unique_violation(error):
                return False
            raise
        return True
    flavour: Any = postgresql.insert if uow.dialect == "postgresql" else sqlite_dialect.insert
    result = await uow.execute(flavour(table).on_conflict_do_nothing(), dict(values))
    return result.rowcount == 1


def array(values: Sequence[str] | Sequence[int]) -> str:
    """PostgreSQL's text form of an array, made in a tenth of the time that psycopg takes for a list.

    Raises SQLAlchemyError for text with a NUL, which PostgreSQL doesn't store.
    """
    if not values or isinstance(values[0], int):
        return "{" + ",".join(map(str, values)) + "}"
    joined = "\0".join(cast("Sequence[str]", values))
    if joined.count("\0") != len(values) - 1:
        raise sa.exc.SQLAlchemyError("text may not hold the character NUL")
    if "\\" in joined:
        joined = joined.replace("\\", "\\\\")
    if '"' in joined:
        joined = joined.replace('"', '\\"')
    return '{"' + joined.replace("\0", '","') + '"}'


# -- durability -------------------------------------------------------------------------------------------


async def durability(db: Database) -> dict[str, str]:
    """What the database promises about a power cut, as the settings that decide it."""
    report = {"dialect": db.dialect}
    if db.dialect == "sqlite":
        async with db.transaction() as uow:
            for name in ("journal_mode", "synchronous"):
                value = (await uow.connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
                report[name] = str(value).lower()
        report["synchronous"] = {"0": "off", "1": "normal", "2": "full", "3": "extra"}[
            report["synchronous"]
        ]
        return report
    async with db.read() as connection:
        if db.dialect == "postgresql":
            for name in ("fsync", "synchronous_commit", "full_page_writes"):
                report[name] = str((await connection.exec_driver_sql(f"SHOW {name}")).scalar_one())
        else:
            for name in ("innodb_flush_log_at_trx_commit", "innodb_doublewrite"):
                value = (await connection.exec_driver_sql(f"SELECT @@GLOBAL.{name}")).scalar_one()
                report[name] = str(value)
    return report


def is_durable(report: Mapping[str, str]) -> bool:
    """Does a committed transaction survive a power cut, by the settings that `durability` reported?"""
    match report["dialect"]:
        case "sqlite":
            return report["synchronous"] in {"full", "extra"}
        case "postgresql":
            return report["fsync"] == "on" and report["synchronous_commit"] in {
                "on",
                "local",
                "remote_write",
                "remote_apply",
            }
        case _:
            return report["innodb_flush_log_at_trx_commit"] == "1"


def file_of(db: Database | URL) -> Path:
    """The file of a SQLite database."""
    url = db.url if isinstance(db, Database) else db
    return Path(str(url.database)).absolute()
