"""The reader of MariaDB databases."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from deskwire_cdc.domain.changes import Batch, Change, Json, Operation
from deskwire_cdc.domain.sources import Source, SourceUnusable
from deskwire_cdc.sources.mariadb import checks
from deskwire_cdc.sources.mariadb.binlog import BinlogLoop, Column, Position, open_stream
from deskwire_cdc.sources.mariadb.server import Server
from deskwire_cdc.sources.port import Reader, ReaderOptions, SnapshotChunk
from deskwire_cdc.sources.pump import Pump
from deskwire_cdc.sources.values import render
from deskwire_common.clock import to_micros


class MariadbReader(Reader):
    """Reads one MariaDB database's binlog."""

    def __init__(self, source: Source, options: ReaderOptions) -> None:
        super().__init__(source, options)
        self._server = Server(source.url, options)
        self._pump = Pump(f"binlog-{source.source_id}", options.max_batch)

    async def check(self) -> None:
        """Refuse settings, privileges, tables and columns that would lose changes."""
        await self._pump.call(self._check)

    async def start_position(self) -> str:
        """Return the GTID set of a view that shows everything up to it.

        `gtid_binlog_pos` alone could be ahead of what a reader sees: a transaction is in the binlog before it is
        visible. A consistent snapshot knows its own place in the binlog.
        """
        return await self._pump.call(self._start_position)

    async def install(self) -> None:
        """Do nothing: the server writes the binlog anyway."""

    async def remove(self) -> None:
        """Do nothing: nothing was installed."""

    def first_cursor(self) -> str:
        """Return the beginning of the first table."""
        return json.dumps({"table": self.source.tables[0], "after": None})

    async def snapshot_chunk(self, cursor: str, position: str) -> SnapshotChunk:
        """Return up to max_batch rows by primary key."""
        return await self._pump.call(lambda: self._snapshot_chunk(cursor, position))

    def batches(self, position: str) -> AsyncGenerator[Batch, None]:
        """Yield the binlog from a position on."""

        def read(emit: Callable[[Batch], None], stopped: threading.Event) -> None:
            with self._server.errors():
                BinlogLoop(
                    self.source, self.options, self._server.address.database, emit, stopped
                ).run(Position.parse(position), self._server)

        return self._pump.batches(read)

    async def confirm(self, position: str) -> None:
        """Do nothing: the binlog expires by itself."""

    async def close(self) -> None:
        """End the thread."""
        self._pump.close()

    # ----- in the thread

    def _check(self) -> None:
        database = self._server.address.database
        with self._server.cursor() as cursor:
            checks.check_server(cursor)
            checks.check_filters(cursor, database)
            columns = {
                table: checks.check_table(cursor, database, table) for table in self.source.tables
            }
        checks.check_rule(self.source.customer_rule, columns)

    def _start_position(self) -> str:
        with self._server.cursor() as cursor:
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
        # Reading one event proves that the privilege and the position are there.
        stream = open_stream(self._server, self.source, self.options, Position.parse(position))
        try:
            with self._server.errors():
                stream.fetchone()
        finally:
            stream.close()
        return position

    def _snapshot_chunk(self, cursor_text: str, position: str) -> SnapshotChunk:
        state = json.loads(cursor_text)
        table, after = state["table"], state["after"]
        with self._server.cursor() as cursor:
            # Read now: the table may have changed since the check.
            columns = checks.check_table(cursor, self._server.address.database, table)
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


def _argument(value: object) -> object:
    """Return a key value that JSON can keep and SQL can compare."""
    return {"hex": value.hex()} if isinstance(value, bytes) else str(value)


def read_value(value: Any, column: Column) -> Json:
    """Return a value from a SELECT as the same JSON as from the binlog."""
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
