"""Events as rows of a table: upserts, and older events never win."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import NoSuchTableError, SQLAlchemyError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from deskwire_adapter import (
    DELIVERED,
    DUPLICATE,
    AdapterBase,
    CredentialsRefused,
    Incoming,
    Login,
    PushFailed,
    Result,
    Session,
    rejected,
    retry,
)
from deskwire_adapter.shipped.folders import file_in, tenant_folder
from deskwire_adapter.shipped.values import MAPPING_SCHEMA, mapped
from deskwire_common import exact
from deskwire_common.db import is_conflict, is_connection_lost, is_unique_violation, normalize_url
from deskwire_common.db.engines import make_engine
from deskwire_common.errors import InvalidArgument
from deskwire_common.targets import TargetRefused, Targets, parse_rules

_PORTS: Final = {"postgresql": 5432, "mysql": 3306}
_SECONDS: Final = 10.0
_NAME: Final = {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,62}$"}


class SqlSession(Session):
    """A connection pool to one database, and the table as it is there."""

    def __init__(self, login: Login, engine: AsyncEngine, table: sa.Table) -> None:
        super().__init__(login)
        self.engine = engine
        self.table = table

    async def close(self) -> None:
        """Close the pool."""
        await self.engine.dispose()


class SqlAdapter(AdapterBase):
    """`python:sql`: upserts into one table of PostgreSQL, MariaDB or MySQL, or of a SQLite file of the tenant's.

    The table has a column for the event_id or for the key and the sequence, with a unique key over it: with `event_id`
    each event is a row, which is written once; with `key` and `sequence` each subject is a row, which an older event
    never overwrites. The credential `password` is the database's.
    """

    program = "sql/1"
    idempotent = True
    config_schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {
            "url": {"type": "string", "minLength": 1, "maxLength": 500},
            "table": _NAME,
            "schema": _NAME,
            "columns": MAPPING_SCHEMA,
            "event_id": _NAME,
            "key": _NAME,
            "sequence": _NAME,
        },
        "required": ["url", "table", "columns"],
        "oneOf": [{"required": ["event_id"]}, {"required": ["key", "sequence"]}],
        "dependentRequired": {"key": ["sequence"], "sequence": ["key"]},
        "additionalProperties": False,
    }

    def __init__(self, targets: Targets | None = None) -> None:
        """`targets` may be called; those of DESKWIRE_ADAPTER_TARGETS, where none are given."""
        rules = os.environ.get("DESKWIRE_ADAPTER_TARGETS", "")
        self._targets = targets or Targets(parse_rules(rules))

    async def auth(self, login: Login) -> SqlSession:
        """Connect, and read what columns the table has."""
        config = login.config
        engine = await self._engine(login)
        try:
            async with asyncio.timeout(_SECONDS), engine.connect() as connection:
                table = await connection.run_sync(
                    lambda sync: sa.Table(
                        config["table"],
                        sa.MetaData(),
                        schema=config.get("schema"),
                        autoload_with=sync,
                    )
                )
            _check_columns(table, config)
        except NoSuchTableError as error:
            await engine.dispose()
            raise CredentialsRefused(f"there is no table {config['table']}") from error
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            await engine.dispose()
            # The driver's own words name users and addresses; the operator has them in the log.
            raise CredentialsRefused(f"the database can't be used: {_kind(error)}") from error
        except CredentialsRefused:
            await engine.dispose()
            raise
        return SqlSession(login, engine, table)

    async def push_one(self, session: SqlSession, event: Incoming) -> Result:  # type: ignore[override]
        """Write one row, in a transaction of its own."""
        config = session.login.config
        values = _values(session.table, event, config)
        try:
            async with session.engine.begin() as connection:
                wrote = await _write(connection, session.table, values, config)
        except StatementError as error:
            if is_connection_lost(error) or is_conflict(error) or is_unique_violation(error):
                raise PushFailed(retry(f"the database is away or busy: {_kind(error)}")) from error
            raise PushFailed(rejected(f"the row isn't taken: {_reason(error)}")) from error
        return DELIVERED if wrote else DUPLICATE

    async def check(self, session: SqlSession) -> str:  # type: ignore[override]
        """Whether the table can be read."""
        async with session.engine.connect() as connection:
            await connection.execute(sa.select(sa.literal(1)).select_from(session.table).limit(1))
        return ""

    async def _engine(self, login: Login) -> AsyncEngine:
        try:
            url = normalize_url(login.config["url"])
        except (InvalidArgument, KeyError) as error:
            raise CredentialsRefused(f"url: {getattr(error, 'message', 'is missing')}") from error
        if url.password:
            raise CredentialsRefused("write the password into the credential password, not the url")
        backend = url.get_backend_name()
        if backend == "sqlite":
            name = make_url(login.config["url"]).database or ""
            path = file_in(tenant_folder(login.tenant_id), name.removeprefix("/"))
            url = url.set(database=str(path))
        else:
            if url.query:
                raise CredentialsRefused("the url may have no parameters")
            port = url.port or _PORTS[backend]
            host = await self._checked(url.host or "", port)
            url = url.set(host=host, port=port, password=login.credentials.get("password"))
        return make_engine(
            url, statement_timeout=_SECONDS, lock_timeout=5.0, pool_size=1, max_overflow=0, pool_pre_ping=True
        )  # fmt: skip

    async def _checked(self, host: str, port: int) -> str:
        try:
            found = await asyncio.to_thread(self._targets.addresses, host, port)
        except TargetRefused as error:
            raise CredentialsRefused(
                "no database answers there that this adapter may call"
            ) from error
        # The address that was checked is dialled, not the name.
        return str(found[0])


def _check_columns(table: sa.Table, config: Mapping[str, Any]) -> None:
    """Raise CredentialsRefused unless the table has the columns, and a unique key over those that tell events apart."""
    keys = [config["event_id"]] if "event_id" in config else [config["key"]]
    wanted = {*keys, *config["columns"], *([config["sequence"]] if "sequence" in config else [])}
    missing = sorted(wanted - set(table.columns.keys()))
    if missing:
        raise CredentialsRefused(f"table {table.name} has no column {', '.join(missing)}")
    unique = [{column.name for column in table.primary_key}]
    unique += [
        {column.name for column in each.columns}
        for each in table.constraints
        if isinstance(each, sa.UniqueConstraint)
    ]
    unique += [{column.name for column in each.columns} for each in table.indexes if each.unique]
    if set(keys) not in unique:
        raise CredentialsRefused(f"column {keys[0]} needs a unique key of its own")


def _values(table: sa.Table, event: Incoming, config: Mapping[str, Any]) -> dict[str, Any]:
    values = {
        column: _fit(table.columns[column], value)
        for column, value in mapped(event, config["columns"]).items()
    }
    if "event_id" in config:
        values[config["event_id"]] = event.event_id
    else:
        values[config["key"]] = event.subject
        values[config["sequence"]] = event.sequence
    return values


def _fit(column: sa.Column[Any], value: Any) -> Any:
    """Objects and arrays as JSON text, unless the column is one of JSON; times as the driver wants them."""
    if isinstance(value, dict | list):
        return value if isinstance(column.type, sa.JSON) else exact.dumps(value)
    if isinstance(value, str) and isinstance(column.type, sa.DateTime):
        try:
            time = datetime.fromisoformat(value)
        except ValueError as error:
            raise PushFailed(rejected(f"{column.name}: {value[:40]!r} is no time")) from error
        return time if column.type.timezone else time.astimezone(UTC).replace(tzinfo=None)
    return value


async def _write(
    connection: AsyncConnection, table: sa.Table, values: dict[str, Any], config: Mapping[str, Any]
) -> bool:
    """Upsert one row; False when the table has it, or something newer."""
    dialect = connection.dialect.name
    once = "event_id" in config
    key = config["event_id"] if once else config["key"]
    others = [name for name in values if name != key]
    if dialect in {"mysql", "mariadb"}:
        return await _write_mysql(connection, table, values, config)
    flavour: Any = postgresql.insert if dialect == "postgresql" else sqlite.insert
    insert = flavour(table).values(values)
    if once or not others:
        statement = insert.on_conflict_do_nothing(index_elements=[key])
    else:
        sequence = config["sequence"]
        statement = insert.on_conflict_do_update(
            index_elements=[key],
            set_={name: insert.excluded[name] for name in others},
            where=table.columns[sequence] < insert.excluded[sequence],
        )
    return bool((await connection.execute(statement)).rowcount)


async def _write_mysql(
    connection: AsyncConnection, table: sa.Table, values: dict[str, Any], config: Mapping[str, Any]
) -> bool:
    """It has no condition on an upsert: the row is locked, and compared here."""
    once = "event_id" in config
    key = config["event_id"] if once else config["key"]
    mine = table.columns[key] == values[key]
    column = table.columns[key if once else config["sequence"]]
    found = (
        await connection.execute(sa.select(column).where(mine).with_for_update())
    ).scalar_one_or_none()
    if found is None:
        # Where somebody wrote it between the two, this fails for its key, and the event comes again.
        await connection.execute(sa.insert(table).values(values))
        return True
    if once or int(found) >= int(values[config["sequence"]]):
        return False
    await connection.execute(sa.update(table).where(mine).values(values))
    return True


def _kind(error: BaseException) -> str:
    original = getattr(error, "orig", None) or error
    return type(original).__name__


def _reason(error: StatementError) -> str:
    """The database's words about a row, in one line: they may name a column or a limit."""
    return f"{_kind(error)}: {' '.join(str(error.orig).split())[:200]}"
