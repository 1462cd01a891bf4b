"""The reader of MariaDB databases."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncGenerator, Callable

from deskwire_cdc.domain.changes import Batch
from deskwire_cdc.domain.sources import Source, SourceUnusable
from deskwire_cdc.sources.mariadb import checks
from deskwire_cdc.sources.mariadb.binlog import BinlogLoop
from deskwire_cdc.sources.mariadb.position import Position, gtids
from deskwire_cdc.sources.mariadb.server import Server
from deskwire_cdc.sources.mariadb.snapshot import chunk_of, read_chunk
from deskwire_cdc.sources.mariadb.stream import open_stream
from deskwire_cdc.sources.port import Reader, ReaderOptions, SnapshotChunk
from deskwire_cdc.sources.pump import Pump
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
            begin = Position.parse(position)
            self._check_history(begin)
            loop = BinlogLoop(
                self.source, self.options, self._server, emit, stopped, recheck=self._check
            )
            with self._server.errors():
                loop.run(begin)

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
            checks.check_replica(cursor)
            checks.check_filters(cursor, database)
            columns = {
                table: checks.check_table(cursor, database, table) for table in self.source.tables
            }
        checks.check_rule(self.source.customer_rule, columns)

    def _check_history(self, position: Position) -> None:
        """Refuse a position of another binlog, whose GTIDs may be the same ones by now."""
        if not position.file:
            return
        with self._server.cursor() as cursor:
            cursor.execute("SHOW BINARY LOGS")
            files = [str(row[0]) for row in cursor.fetchall()]
            if position.file not in files:
                # Purged, most likely: then the server says whether something is missing.
                known = position.file.rpartition(".")[0] == (files or [""])[-1].rpartition(".")[0]
                there = position.done if known and position.file < files[-1] else {}
            else:
                cursor.execute("SELECT BINLOG_GTID_POS(%s, %s)", (position.file, position.offset))
                there = gtids(str((cursor.fetchone() or ("",))[0] or ""))
        if any(there.get(domain) != gtid for domain, gtid in position.done.items()):
            raise SourceUnusable(
                "binlog_history",
                f"The server's binlog isn't the one of the saved position {position.text()}: it was reset, or "
                "the server is another one. Delete this source and create it again with a snapshot.",
            )

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
        where = Position.parse(str(found[0]))
        where.file = str(status["binlog_snapshot_file"])
        where.offset = int(status["binlog_snapshot_position"])
        # Reading one event proves that the privilege and the position are there.
        stream = open_stream(self._server, self.source, self.options, where)
        try:
            with self._server.errors():
                stream.fetchone()
        finally:
            stream.close()
        return where.text()

    def _snapshot_chunk(self, cursor_text: str, position: str) -> SnapshotChunk:
        state = json.loads(cursor_text)
        table, after = state["table"], state["after"]
        with self._server.cursor() as cursor:
            # Read now: the table may have changed since the check.
            columns = checks.check_table(cursor, self._server.address.database, table)
            changes, last = read_chunk(
                cursor,
                table,
                columns,
                after,
                limit=self.options.max_batch,
                position=position,
                now=to_micros(self.options.clock.now()),
            )
        return chunk_of(changes, table, last, self.source.tables)
