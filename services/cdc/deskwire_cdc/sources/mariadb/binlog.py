"""MariaDB's binlog: turns its events into batches of changes.

- A transaction is held until its end: what was rolled back is delivered to nobody.
- A position inside a transaction is its GTID set *before* the transaction, the transaction's GTID, and the number of
  rows done: `0-1-56+0-1-57:3`. The server sends the transaction from its start, and the rows done are dropped here.
- Events that mysql-replication doesn't know (compressed rows, incidents, …) end the capture, with the name of the
  setting that makes them.
- Rows without all columns, or without column names, are refused. A row with a value that its charset doesn't have is
  told as unreadable.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from typing import Any

from pymysqlreplication.event import (
    ExecuteLoadQueryEvent,
    FormatDescriptionEvent,
    HeartbeatLogEvent,
    MariadbGtidEvent,
    NotImplementedEvent,
    QueryEvent,
    XAPrepareEvent,
    XidEvent,
)
from pymysqlreplication.row_event import (
    DeleteRowsEvent,
    PartialUpdateRowsEvent,
    RowsEvent,
    UpdateRowsEvent,
    WriteRowsEvent,
)

from deskwire_cdc.domain.changes import Batch, Change, Operation
from deskwire_cdc.domain.sources import Source, SourceUnusable
from deskwire_cdc.sources.mariadb.charsets import Charsets
from deskwire_cdc.sources.mariadb.decode import Image, describe, images
from deskwire_cdc.sources.mariadb.position import Position
from deskwire_cdc.sources.mariadb.server import Server
from deskwire_cdc.sources.mariadb.statements import effect, tokens
from deskwire_cdc.sources.mariadb.stream import ConnectionLost, open_stream
from deskwire_cdc.sources.mariadb.transaction import Transaction
from deskwire_cdc.sources.port import ReaderOptions
from deskwire_cdc.sources.rows import row_changes
from deskwire_common.clock import to_micros

COMPRESSED_EVENTS = range(165, 169)
IGNORABLE_FLAG = 0x80  # LOG_EVENT_IGNORABLE_F: the server says that a reader may skip it
STANDALONE = 1  # MariadbGtidEvent.flags: one event follows, without a COMMIT
PREPARED_XA = 64
# What an event of a form that nobody knows ends with, here or in the library.
_UNREADABLE = (ValueError, LookupError, NotImplementedError, AssertionError, struct.error)


class BinlogLoop:
    """Turns binlog events into batches, in a thread."""

    def __init__(
        self,
        source: Source,
        options: ReaderOptions,
        server: Server,
        emit: Callable[[Batch], None],
        stopped: threading.Event,
        *,
        recheck: Callable[[], None],
    ) -> None:
        """`recheck` raises SourceUnusable when a table's new definition can't be captured."""
        self._source = source
        self._options = options
        self._server = server
        self._emit = emit
        self._stopped = stopped
        self._recheck = recheck
        self._charsets = Charsets(server)
        self._position = Position()
        self._resume = ("", 0)
        self._file = ""
        self._open: Transaction | None = None
        self._altered = False
        self._held: list[Change] = []
        self._read = 0
        self._notice = ""
        self._emitted = ""
        self._emitted_at = 0.0

    def run(self, position: Position) -> None:
        """Read and emit until stopped. Raises what ends the stream."""
        self._resume = (position.partial_gtid, position.partial_rows)
        self._position = position
        self._emitted = "nothing yet"  # the first heartbeat says that the source is there
        stream = open_stream(self._server, self._source, self._options, position)
        try:
            while not self._stopped.is_set():
                try:
                    event = stream.fetchone()
                except _UNREADABLE as error:
                    raise SourceUnusable(
                        "binlog", f"{self._place()} can't be read: {error}."
                    ) from error
                if event is None:
                    raise ConnectionLost("The server ended the stream.")
                self._file = stream.log_file or ""
                self._handle(event)
        finally:
            if self._open is not None:
                self._open.close()
            stream.close()

    def _place(self) -> str:
        return f"An event of {self._open.gtid}" if self._open else "An event of the binlog"

    def _handle(self, event: Any) -> None:
        match event:
            case PartialUpdateRowsEvent():
                raise SourceUnusable(
                    "binlog_row_value_options", "Partial JSON updates can't be captured: unset it."
                )
            case RowsEvent():
                self._on_rows(event)
            case MariadbGtidEvent():
                self._on_gtid(event)
            case XidEvent() | XAPrepareEvent():
                self._on_end(event)
            case QueryEvent():
                self._on_query(event)
            case ExecuteLoadQueryEvent():
                event.packet.advance(event.status_vars_length)
                schema = event.packet.read(event.schema_length).decode(errors="replace")
                query = event.packet.read(event.event_size - event.packet.read_bytes)
                self._on_statement(query.decode(errors="replace").lstrip("\0"), schema)
            case HeartbeatLogEvent():
                self._flush_position()
            case FormatDescriptionEvent() if self._open:
                # The server crashed while it wrote a transaction, and took it back.
                self._notice = f"The binlog has an unfinished transaction, {self._open.gtid}."
                self._open.close()
                self._open = None
            case NotImplementedEvent():
                _on_unknown(event)
            case _:
                pass  # rotations, checkpoints, table maps: the library's business

    def _on_gtid(self, event: Any) -> None:
        self._open = Transaction(
            event.gtid,
            dropped=event.domain_id == self._options.mark_domain_id,
            standalone=bool(event.flags & STANDALONE),
            prepared=bool(event.flags & PREPARED_XA),
        )

    def _on_rows(self, event: Any) -> None:
        transaction = self._open
        if transaction is None:
            raise SourceUnusable("binlog", f"Rows of {event.table} are in no transaction.")
        if transaction.prepared:
            raise SourceUnusable(
                "xa",
                f"{transaction.gtid} is an XA transaction that writes to {event.table}, whose rows come before it is "
                "decided: not captured. Delete this source and create it again with a snapshot.",
            )
        try:
            columns = describe(event, self._charsets)
            keys = [column.name for column in columns if column.is_key]
            now = to_micros(self._options.clock.now())
            for found, size in images(event, columns, pairs=isinstance(event, UpdateRowsEvent)):
                transaction.rows += 1
                done = transaction.gtid == self._resume[0] and transaction.rows <= self._resume[1]
                if done or transaction.dropped:
                    continue
                operation, before, after = _operation(event, found)
                changes = row_changes(
                    event.table,
                    operation,
                    keys,
                    before.row if before else None,
                    after.row if after else None,
                    position=f"{transaction.gtid}:{transaction.rows}",
                    committed_at=event.timestamp * 1_000_000,
                    read_at=now,
                    unreadable=after.bad if after else "",
                    unreadable_before=bool(before and before.bad),
                )
                transaction.add(changes, size)
        except _UNREADABLE as error:
            raise SourceUnusable(
                "binlog", f"{self._place()} in table {event.table} can't be read: {error}."
            ) from error

    def _on_query(self, event: Any) -> None:
        query = event.query
        match [each.text.upper() for each in tokens(query)[:2]] if len(query) < 200 else []:
            case ["COMMIT"] | ["XA", "COMMIT" | "ROLLBACK"]:
                self._on_end(event)
                return
            case ["ROLLBACK"]:
                self._on_end(event, undone=True)
                return
            case ["ROLLBACK", "TO"] if self._open:
                self._open.rollback_to(tokens(query)[-1].text)
                return
            case ["SAVEPOINT", _] if self._open:
                self._open.savepoint(tokens(query)[1].text)
                return
        self._on_statement(query, event.schema.decode(errors="replace"))
        if self._open is None or self._open.standalone:
            self._on_end(event)

    def _on_statement(self, query: str, schema: str) -> None:
        found = effect(query, schema, self._server.address.database, self._source.tables)
        if found.writes:
            raise SourceUnusable(
                "binlog_format",
                f"A session wrote to {found.writes} with binlog_format other than ROW: which rows changed "
                "isn't in the binlog. Set binlog_format=ROW; delete this source and create it again with a "
                "snapshot.",
            )
        if found.elsewhere:
            self._notice = (
                f"A session wrote to {found.elsewhere} with binlog_format other than ROW: what its triggers "
                "wrote to captured tables is in no event. Set binlog_format=ROW."
            )
        if found.ends:
            self._notice = (
                f"{found.verb} of {found.ends}: the rows that went are in no event. "
                "Delete the source and create it again with a snapshot if readers must know."
            )
        self._altered = self._altered or found.alters

    def _on_end(self, event: Any, *, undone: bool = False) -> None:
        transaction, self._open = self._open, None
        if transaction is not None:
            if not undone:
                self._commit(transaction)
            transaction.close()
            position = self._position
            position.done[transaction.gtid.split("-", 1)[0]] = transaction.gtid
            position.partial_gtid, position.partial_rows = "", 0
            position.file, position.offset = self._file, event.packet.log_pos
        if self._held or self._notice:
            self._flush()
        elif self._options.clock.monotonic() - self._emitted_at >= self._options.heartbeat_seconds:
            # A server that is busy with other tables sends no heartbeats.
            self._flush_position()
        if self._altered:
            self._altered = False
            self._recheck()

    def _commit(self, transaction: Transaction) -> None:
        """Emit a transaction's changes but for the last batch of them."""
        for row, changes in transaction.changes():
            if len(self._held) >= self._options.max_batch:
                self._flush()
            self._held += changes
            self._read += 1
            self._position.partial_gtid, self._position.partial_rows = transaction.gtid, row

    def _flush_position(self) -> None:
        """Emit the position if it has moved, between transactions only."""
        if self._open is None and self._position.text() != self._emitted:
            self._flush()

    def _flush(self) -> None:
        text = self._position.text()
        self._emit(Batch(self._held, text, self._read, notice=self._notice))
        self._emitted, self._emitted_at = text, self._options.clock.monotonic()
        self._held, self._read, self._notice = [], 0, ""


def _on_unknown(event: Any) -> None:
    if event.event_type in COMPRESSED_EVENTS:
        raise SourceUnusable(
            "log_bin_compress",
            "The binlog has compressed events, whose rows can't be read: set log_bin_compress=OFF; "
            "delete this source and create it again with a snapshot.",
        )
    if event.packet.flags & IGNORABLE_FLAG:
        return
    raise SourceUnusable("binlog", f"The binlog has an unknown event of type {event.event_type}.")


def _operation(event: Any, found: list[Image]) -> tuple[Operation, Image | None, Image | None]:
    """Return the operation, and the row before and after."""
    match event:
        case WriteRowsEvent():
            return Operation.INSERT, None, found[0]
        case DeleteRowsEvent():
            return Operation.DELETE, found[0], None
        case UpdateRowsEvent():
            return Operation.UPDATE, found[0], found[1]
        case _:
            raise SourceUnusable("binlog", f"Unknown row event {type(event).__name__}.")
