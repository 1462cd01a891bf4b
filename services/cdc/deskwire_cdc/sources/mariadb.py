"""MariaDB: settings, tables and snapshots; the row changes come from the binlog (`binlog.py`), by
GTID.

A user needs `GRANT REPLICATION SLAVE, BINLOG MONITOR ON *.*` and `GRANT SELECT` on the database.
Not
seen, since it isn't in the binlog: what sessions write with `sql_log_bin=0`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, cast

import pymysql
from pymysql.constants import CR, ER

from deskwire_cdc.domain import (
    Batch,
    Change,
    Json,
    Operation,
    Source,
    SourceUnreachable,
    SourceUnusable,
    parse_url,
    without_secret,
)
from deskwire_cdc.sources.base import Pump, Reader, ReaderOptions, SnapshotChunk
from deskwire_cdc.sources.binlog import BinlogLoop, Column, Position, open_stream
from deskwire_cdc.sources.values import render
from deskwire_common.clock import to_micros

# Variable, the value that it must have, and why another one loses changes.
REQUIRED_VARIABLES = (
    ("log_bin", "1", "ON", "there is no binlog to read"),
    ("binlog_format", "ROW", "ROW", "statements don't say which rows they changed"),
    ("binlog_row_image", "FULL", "FULL", "other images leave columns out"),
    ("binlog_row_metadata", "FULL", "FULL", "column names are only in full metadata"),
    ("log_bin_compress", "0", "OFF", "compressed row events can't be read"),
)
UNSUPPORTED_TYPES = frozenset(
    {
        "uuid", "inet4", "inet6", "geometry", "point", "linestring", "polygon", "multipoint",
        "multilinestring", "multipolygon", "geometrycollection", "vector",
    }
)  # fmt: skip
ACCESS_ERRORS = frozenset(
    {
        ER.ACCESS_DENIED_ERROR,
        ER.DBACCESS_DENIED_ERROR,
        ER.TABLEACCESS_DENIED_ERROR,
        ER.SPECIFIC_ACCESS_DENIED_ERROR,
        ER.BAD_DB_ERROR,
    }
)
#: All that a tenant is told, whether a rule forbids the address, nothing answers, or what answers is no MariaDB.
NOT_THERE = "No MariaDB answers at this url that change capture may call."
PURGED_ERROR = 1236  # ER_MASTER_FATAL_ERROR_READING_BINLOG: the position isn't in the binlog


class MariadbReader(Reader):
    """Reads one MariaDB database's binlog."""

    def __init__(self, source: Source, options: ReaderOptions) -> None:
        super().__init__(source, options)
        self._url = parse_url(source.kind, source.url)
        self._pump = Pump(f"binlog-{source.source_id}", options.max_batch)
        self._columns: dict[str, list[Column]] = {}

    async def check(self) -> None:
        """Refuse settings, privileges, tables and columns that would lose changes."""
        await self._pump.call(self._check)

    async def start_position(self) -> str:
        """The GTID set of a view that shows everything up to it.

        `gtid_binlog_pos` alone could be ahead of what a reader sees: a transaction is in the
        binlog before it is visible.
        A consistent snapshot knows its own place in the binlog.
        """
        return await self._pump.call(self._start_position)

    async def install(self) -> None:
        """Nothing: the binlog is there."""

    async def remove(self) -> None:
        """Nothing was installed."""

    def first_cursor(self) -> str:
        """The first table, from its beginning."""
        return json.dumps({"table": self.source.tables[0], "after": None})

    async def snapshot_chunk(self, cursor: str, position: str) -> SnapshotChunk:
        """Up to max_batch rows by primary key."""
        return await self._pump.call(lambda: self._snapshot_chunk(cursor, position))

    def batches(self, position: str) -> AsyncGenerator[Batch, None]:
        """The binlog from position on."""

        def read(emit: Callable[[Batch], None], stopped: threading.Event) -> None:
            with self._errors():
                BinlogLoop(self.source, self.options, self._url.database, emit, stopped).run(
                    Position.parse(position), self._settings(), self._dial
                )

        return self._pump.batches(read)

    async def confirm(self, position: str) -> None:
        """The binlog expires by itself."""

    async def close(self) -> None:
        """Let the thread go."""
        self._pump.close()

    # ----- in the thread

    def _settings(self) -> dict[str, Any]:
        return {
            "host": self._url.host,
            "port": self._url.port,
            "user": self._url.user,
            "password": self._url.password,
            "connect_timeout": self.options.connect_timeout,
            "read_timeout": self.options.read_timeout,
            "write_timeout": self.options.read_timeout,
            "charset": "utf8mb4",
        }

    def _dial(self, **settings: Any) -> pymysql.Connection[Any]:
        """Connect to an address that the rules allow; the name is resolved here, and nowhere else.

        A server's own refusal is raised as it is; whatever else goes wrong is one SourceUnreachable.
        """
        try:
            addresses = self.options.targets.addresses(self._url.host, self._url.port)
            return _first_that_answers(settings, [str(each) for each in addresses])
        except Exception as error:
            if isinstance(error, pymysql.MySQLError) and _is_of_the_server(error):
                raise
            # Also what the driver makes of the words of some other kind of server.
            raise SourceUnreachable("url", NOT_THERE, detail=self._words(error)) from None

    def _words(self, error: Exception) -> str:
        text = f"{self._url.host}:{self._url.port}: {type(error).__name__}: {error}"
        return without_secret(text, self.source.url)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Driver errors → ours, without the password."""
        try:
            yield
        except pymysql.MySQLError as error:
            raise self._translate(error) from None

    def _translate(self, error: pymysql.MySQLError) -> Exception:
        code = error.args[0] if error.args else 0
        text = without_secret(str(error.args[-1] if error.args else error), self.source.url)
        if code == PURGED_ERROR:
            return SourceUnusable(
                "binlog_expire_logs_seconds",
                f"The saved position isn't in the binlog any more: {text}. Keep the binlog "
                "longer; delete this "
                "source and create it again with a snapshot.",
            )
        if code == ER.SPECIFIC_ACCESS_DENIED_ERROR:
            return SourceUnusable("privileges", f"{text}. GRANT it to the source's user.")
        if code in ACCESS_ERRORS:
            return SourceUnusable("url", f"The database refuses the source's user: {text}.")
        if not _is_of_the_server(error):
            return SourceUnreachable("url", NOT_THERE, detail=self._words(error))
        if isinstance(error, pymysql.OperationalError):
            return SourceUnreachable("url", f"The database can't be used now: {text}.")
        return error

    @contextmanager
    def _cursor(self) -> Iterator[pymysql.cursors.Cursor]:
        with (
            self._errors(),
            closing(self._dial(**self._settings(), database=self._url.database)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("SET time_zone = '+00:00'")
            yield cursor

    def _check(self) -> None:
        with self._cursor() as cursor:
            _check_server(cursor)
            _check_filters(cursor, self._url.database)
            self._columns = {
                table: self._check_table(cursor, table) for table in self.source.tables
            }
        rule = self.source.customer_rule
        if rule is not None:
            known = {column.name: column for column in self._columns[rule.table]}
            for name in rule.named_columns():
                if name not in known:
                    raise SourceUnusable(
                        "customer_rule", f"Table {rule.table} has no column {name}."
                    )
            version = rule.version_column
            if version and not known[version].data_type.endswith("int"):
                raise SourceUnusable(
                    "customer_rule", f"Column {version} is not an integer: it can't be a version."
                )

    def _check_table(self, cursor: pymysql.cursors.Cursor, table: str) -> list[Column]:
        place = (self._url.database, table)
        cursor.execute(
            "SELECT engine FROM information_schema.tables WHERE table_schema = %s AND "
            "table_name = %s "
            "AND table_type = 'BASE TABLE'",
            place,
        )
        if (found := cursor.fetchone()) is None:
            raise SourceUnusable(
                "tables", f"There is no table {table}, or the source's user may not SELECT from it."
            )
        if str(found[0]).lower() != "innodb":
            raise SourceUnusable(
                "engine",
                f"Table {table} has engine {found[0]}, whose binlog isn't in step with its rows: "
                f"ALTER TABLE {table} ENGINE=InnoDB.",
            )
        cursor.execute(
            "SELECT column_name, sub_part FROM information_schema.statistics WHERE table_schema "
            "= %s "
            "AND table_name = %s AND index_name = 'PRIMARY'",
            place,
        )
        keys = dict(cast("Sequence[tuple[str, int | None]]", cursor.fetchall()))
        if not keys or any(part is not None for part in keys.values()):
            raise SourceUnusable(
                "primary_key", f"Table {table} has no primary key over whole columns."
            )
        cursor.execute(
            "SELECT column_name, data_type, numeric_precision FROM information_schema.columns "
            "WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position",
            place,
        )
        columns = [
            Column(name, str(data_type).lower(), int(bits or 0), name in keys)
            for name, data_type, bits in cursor.fetchall()
        ]
        for column in columns:
            if column.data_type in UNSUPPORTED_TYPES:
                raise SourceUnusable(
                    "column_type",
                    f"Column {table}.{column.name} has type {column.data_type}, which can't be "
                    "captured.",
                )
        return columns

    def _start_position(self) -> str:
        with self._cursor() as cursor:
            cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
            cursor.execute("SHOW STATUS LIKE 'binlog_snapshot_%'")
            status = {str(name).lower(): value for name, value in cursor.fetchall()}
            cursor.execute(
                "SELECT BINLOG_GTID_POS(%s, %s)",
                (status["binlog_snapshot_file"], int(status["binlog_snapshot_position"])),
            )
            found = cursor.fetchone()
        if found is None or found[0] is None:
            raise SourceUnusable("log_bin", "The server doesn't say where its binlog is.")
        position = str(found[0])
        # Reading one event proves the privilege and that the position is there.
        stream = open_stream(
            self._dial, self._settings(), self.source, self.options, Position.parse(position)
        )
        try:
            with self._errors():
                stream.fetchone()
        finally:
            stream.close()
        return position

    def _snapshot_chunk(self, cursor_text: str, position: str) -> SnapshotChunk:
        state = json.loads(cursor_text)
        table, after = state["table"], state["after"]
        with self._cursor() as cursor:
            # Read now: the table may have changed since the check.
            columns = self._check_table(cursor, table)
            keys = [column.name for column in columns if column.is_key]
            names = ", ".join(f"`{column.name}`" for column in columns)
            order = ", ".join(f"`{name}`" for name in keys)
            where = ""
            arguments: tuple[Any, ...] = ()
            if after is not None:
                where = f"WHERE ({order}) > ({', '.join(['%s'] * len(keys))})"
                arguments = tuple(
                    bytes.fromhex(value["hex"]) if isinstance(value, dict) else value
                    for value in after
                )
            limit = self.options.max_batch
            cursor.execute(
                f"SELECT {names} FROM `{table}` {where} ORDER BY {order} LIMIT {limit}",  # noqa: S608 - names are the schema's
                arguments,
            )
            rows = cursor.fetchall()
        now = to_micros(self.options.clock.now())
        changes = []
        for values in rows:
            row = {
                column.name: read_value(value, column)
                for column, value in zip(columns, values, strict=True)
            }
            key = {name: row[name] for name in keys}
            changes.append(
                Change(
                    table,
                    Operation.SNAPSHOT,
                    key=key,
                    before=None,
                    after=row,
                    position=f"{position}/snapshot/{table}/{json.dumps(list(key.values()))}",
                    committed_at=now,
                    read_at=now,
                )
            )
        return SnapshotChunk(changes, self._next_cursor(table, keys, columns, rows))

    def _next_cursor(
        self, table: str, keys: list[str], columns: list[Column], rows: Sequence[Sequence[Any]]
    ) -> str:
        if len(rows) == self.options.max_batch:
            last = {column.name: rows[-1][index] for index, column in enumerate(columns)}
            after = [
                value if isinstance(value, int) else _argument(value)
                for value in (last[name] for name in keys)
            ]
            return json.dumps({"table": table, "after": after})
        following = self.source.tables.index(table) + 1
        if following == len(self.source.tables):
            return ""
        return json.dumps({"table": self.source.tables[following], "after": None})


def _first_that_answers(
    settings: Mapping[str, Any], addresses: Sequence[str]
) -> pymysql.Connection[Any]:
    """A connection to the first of the addresses that takes one. Raises what the last one ended with."""
    failure: Exception = OSError("no address")
    for address in addresses:
        # A server that says nothing is given up as soon as one that doesn't answer.
        arguments = {**settings, "host": address, "read_timeout": settings["connect_timeout"]}
        try:
            connection = pymysql.connect(**arguments)
        except pymysql.OperationalError as error:
            if error.args[0] != CR.CR_CONN_HOST_ERROR:
                raise
            failure = error
        else:
            # There is no other way once it is connected.
            connection._read_timeout = settings["read_timeout"]  # type: ignore[attr-defined]  # noqa: SLF001
            return connection
    raise failure


def _is_of_the_server(error: pymysql.MySQLError) -> bool:
    """Whether a server that speaks MySQL said it; the driver's own numbers are from 2000 to 2999."""
    code = error.args[0] if error.args else 0
    return isinstance(code, int) and code >= 1000 and not 2000 <= code < 3000


def _argument(value: object) -> object:
    """A key value that JSON can keep and SQL can compare."""
    return {"hex": value.hex()} if isinstance(value, bytes) else str(value)


def _check_server(cursor: pymysql.cursors.Cursor) -> None:
    cursor.execute("SELECT VERSION()")
    version = str((cursor.fetchone() or ("",))[0])
    if "mariadb" not in version.lower():
        raise SourceUnusable(
            "version",
            f"The server is version {version}: only MariaDB's binlog is read, its GTIDs differ "
            "from MySQL's.",
        )
    cursor.execute("SHOW GLOBAL VARIABLES")
    values = {str(name): str(value) for name, value in cursor.fetchall()}
    for name, _, wanted, why in REQUIRED_VARIABLES:
        found = values.get(name, "missing")
        if found.upper() != wanted:
            raise SourceUnusable(name, f"Set {name}={wanted} (it is {found}): {why}.")


def _check_filters(cursor: pymysql.cursors.Cursor, database: str) -> None:
    cursor.execute("SHOW MASTER STATUS")
    found = cursor.fetchone()
    if found is None:
        raise SourceUnusable("log_bin", "Set log_bin=ON: there is no binlog to read.")
    only = [name for name in str(found[2] or "").split(",") if name]
    ignored = [name for name in str(found[3] or "").split(",") if name]
    if only and database not in only:
        raise SourceUnusable("binlog_do_db", f"binlog_do_db leaves out the database {database}.")
    if database in ignored:
        raise SourceUnusable("binlog_ignore_db", f"binlog_ignore_db leaves out {database}.")


def read_value(value: Any, column: Column) -> Json:
    """A value as a SELECT gives it → the same JSON as from the binlog."""
    kind = column.data_type
    if value is None:
        return None
    if kind == "bit" and isinstance(value, bytes):
        return f"{int.from_bytes(value, 'big'):0{column.bits}b}"
    if kind in {"date", "datetime", "timestamp"}:
        # The driver leaves a date that is no date as text.
        rendered = None if isinstance(value, str) else render(value)
        return f"{rendered}Z" if rendered is not None and kind == "timestamp" else rendered
    return render(value)
