"""MariaDB's binlog: turns its events into batches of changes.

mysql-replication reads it; its quiet ways of losing rows are closed here:

- It reconnects by itself at the position that it was opened with. Here a lost connection ends the reader, and the
  follower opens a new one at the saved position.
- A position inside a transaction is its GTID set *before* the transaction, the transaction's GTID, and the number of
  rows done: `0-1-56+0-1-57:3`. The server sends the transaction from its start, and the rows done are dropped here.
- It filters out events that it doesn't know (compressed rows, incidents, …). Here they end the capture, with the name
  of the setting that makes them.
- Rows without all columns, or without column names, are refused.
"""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.constants import FIELD_TYPE, NONE_SOURCE
from pymysqlreplication.event import (
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

from deskwire_cdc.domain.changes import Batch, Change, Json, Operation
from deskwire_cdc.domain.sources import Source, SourceUnreachable, SourceUnusable
from deskwire_cdc.sources.mariadb.server import Server
from deskwire_cdc.sources.port import ReaderOptions
from deskwire_cdc.sources.rows import row_changes
from deskwire_cdc.sources.values import render, shortest_single
from deskwire_common.clock import to_micros

COMPRESSED_EVENTS = range(165, 169)
IGNORABLE_FLAG = 0x80  # LOG_EVENT_IGNORABLE_F: the server says that a reader may skip it
STANDALONE = 1  # MariadbGtidEvent.flags: one event follows, without a COMMIT
PREPARED_XA, COMPLETED_XA = 64, 128
STATEMENT = re.compile(r"^\s*(insert|update|delete|replace|load\s+data)\b", re.IGNORECASE)
TABLE_ENDING = re.compile(r"^\s*(truncate|drop\s+table|rename\s+table)\b", re.IGNORECASE)


class ConnectionLost(SourceUnreachable):
    """The stream broke; a new reader goes on at the saved position."""

    def __init__(self, message: str) -> None:
        super().__init__("url", message)


@dataclass(slots=True)
class Position:
    """Where to go on: a GTID per domain, and rows done of the transaction after them."""

    done: dict[str, str] = field(default_factory=dict)
    """Domain id → GTID of the last whole transaction."""
    partial_gtid: str = ""
    partial_rows: int = 0

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read `0-1-56,7-1-3` or `0-1-56,7-1-3+0-1-57:3`; empty: the binlog's beginning."""
        whole, _, partial = text.partition("+")
        gtid, _, rows = partial.partition(":")
        done = {gtid.split("-", 1)[0]: gtid for gtid in whole.split(",") if gtid}
        return cls(done, gtid, int(rows or 0))

    def gtid_set(self) -> str:
        """Return the GTID set for the server."""
        return ",".join(self.done.values())

    def text(self) -> str:
        """Return the form that is saved."""
        if not self.partial_gtid:
            return self.gtid_set()
        return f"{self.gtid_set()}+{self.partial_gtid}:{self.partial_rows}"


@dataclass(frozen=True, slots=True)
class Column:
    """A captured table's column."""

    name: str
    data_type: str
    bits: int
    is_key: bool


def server_id(source: Source) -> int:
    """Return a replica's id in the upper half of 32 bits, the same for a source whichever process owns it.

    The server ends an older stream with the same id: so an owner that lost its lease goes quiet.
    """
    return 0x80000000 | (zlib.crc32(source.incarnation.encode()) & 0x7FFFFFFF)


def open_stream(
    server: Server, source: Source, options: ReaderOptions, position: Position
) -> BinLogStreamReader:
    """A stream that ends with ConnectionLost instead of reconnecting by itself."""
    connections = 0

    def connect(**arguments: Any) -> Any:
        nonlocal connections
        connections += 1
        # The stream itself and its control connection; a third one would be a silent reconnect.
        if connections > 2:
            raise ConnectionLost("The connection to the database was lost.")
        return server.dial(**arguments)

    return BinLogStreamReader(
        server.settings(),
        server_id=server_id(source),
        blocking=True,
        is_mariadb=True,
        auto_position=position.gtid_set(),
        slave_heartbeat=options.heartbeat_seconds,
        filter_non_implemented_events=False,
        only_schemas=[server.address.database],
        only_tables=list(source.tables),
        enable_logging=False,
        pymysql_wrapper=connect,
    )


class BinlogLoop:
    """Turns binlog events into batches, in a thread."""

    def __init__(
        self,
        source: Source,
        options: ReaderOptions,
        database: str,
        emit: Callable[[Batch], None],
        stopped: threading.Event,
    ) -> None:
        self._source = source
        self._options = options
        self._database = database
        self._emit = emit
        self._stopped = stopped
        self._position = Position()
        self._resume = ("", 0)
        self._gtid = ""
        self._standalone = False
        self._dropped = False
        self._rows = 0
        self._pending: list[Change] = []
        self._read = 0
        self._notice = ""
        self._emitted = ""

    def run(self, position: Position, server: Server) -> None:
        """Read and emit until stopped. Raises what ends the stream."""
        self._resume = (position.partial_gtid, position.partial_rows)
        self._position = Position(dict(position.done), *self._resume)
        self._emitted = "nothing yet"  # the first heartbeat says that the source is there
        stream = open_stream(server, self._source, self._options, position)
        try:
            while not self._stopped.is_set():
                event = stream.fetchone()
                if event is None:
                    raise ConnectionLost("The server ended the stream.")
                self._handle(event)
        finally:
            stream.close()

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
            case XidEvent():
                self._on_end()
            case QueryEvent():
                self._on_query(event)
            case XAPrepareEvent():
                raise _xa()
            case HeartbeatLogEvent():
                self._flush(force=False)
            case FormatDescriptionEvent() if self._gtid:
                # The server crashed while it wrote a transaction, and took it back.
                self._notice = f"The binlog has an unfinished transaction, {self._gtid}."
                self._pending.clear()
                self._gtid = ""
            case NotImplementedEvent():
                _on_unknown(event)
            case _:
                pass  # rotations, checkpoints, table maps: the library's business

    def _on_gtid(self, event: Any) -> None:
        if event.flags & (PREPARED_XA | COMPLETED_XA):
            raise _xa()
        self._gtid = event.gtid
        self._standalone = bool(event.flags & STANDALONE)
        self._dropped = event.domain_id == self._options.mark_domain_id
        self._rows = 0

    def _on_rows(self, event: Any) -> None:
        columns = describe(event)
        now = to_micros(self._options.clock.now())
        for row in event.rows:
            self._rows += 1
            self._read += 1
            if self._gtid == self._resume[0] and self._rows <= self._resume[1]:
                self._read -= 1  # counted when it was delivered
                continue
            if self._dropped:
                continue
            operation, before, after = images(event, row, columns)
            self._pending += row_changes(
                event.table,
                operation,
                [column.name for column in columns if column.is_key],
                before,
                after,
                position=f"{self._gtid}:{self._rows}",
                committed_at=event.timestamp * 1_000_000,
                read_at=now,
            )
            if len(self._pending) >= self._options.max_batch:
                self._position.partial_gtid = self._gtid
                self._position.partial_rows = self._rows
                self._flush(force=True)

    def _on_query(self, event: Any) -> None:
        query = event.query
        if query in {"COMMIT", "ROLLBACK"}:
            self._on_end()
            return
        schema = event.schema.decode(errors="replace")
        captured = [table for table in self._source.tables if re.search(rf"\b{table}\b", query)]
        if captured and (schema == self._database or self._database in query):
            if STATEMENT.match(query):
                raise SourceUnusable(
                    "binlog_format",
                    f"A session wrote to {captured[0]} with binlog_format other than ROW: which "
                    "rows changed isn't "
                    "in the binlog. Set binlog_format=ROW; delete this source and create it "
                    "again with a snapshot.",
                )
            if TABLE_ENDING.match(query):
                self._notice = (
                    f"{query.split()[0].upper()} of {captured[0]}: the rows that went are in no "
                    "event. "
                    "Delete the source and create it again with a snapshot if readers must know."
                )
        if self._standalone:
            self._on_end()

    def _on_end(self) -> None:
        if self._gtid:
            self._position.done[self._gtid.split("-", 1)[0]] = self._gtid
            self._position.partial_gtid, self._position.partial_rows = "", 0
            self._gtid = ""
        if self._pending or self._notice:
            self._flush(force=True)

    def _flush(self, *, force: bool) -> None:
        """Emit what was read. Without `force`, do so only between transactions and when the position has moved."""
        text = self._position.text()
        if not force and (self._gtid or text == self._emitted):
            return
        self._emit(Batch(self._pending, text, self._read, notice=self._notice))
        self._emitted = text
        self._pending, self._read, self._notice = [], 0, ""


def _xa() -> SourceUnusable:
    return SourceUnusable(
        "xa",
        "The binlog has an XA transaction, whose rows come before it is decided: not captured.",
    )


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


def describe(event: Any) -> list[Column]:
    """Return the row's columns as the table was when it was written."""
    columns = [
        Column(column.name or "", type_name(column), 0, bool(column.is_primary))
        for column in event.columns
    ]
    if any(not column.name for column in columns):
        raise SourceUnusable(
            "binlog_row_metadata",
            "The binlog has rows without column names: set binlog_row_metadata=FULL; delete "
            "this source and "
            "create it again with a snapshot.",
        )
    if not any(column.is_key for column in columns):
        raise SourceUnusable("primary_key", f"Table {event.table} has no primary key any more.")
    return columns


def type_name(column: Any) -> str:
    """Return the types whose values need more than their Python type says."""
    match column.type:
        case FIELD_TYPE.TIMESTAMP | FIELD_TYPE.TIMESTAMP2:
            return "timestamp"
        case FIELD_TYPE.FLOAT:
            return "float"
        case FIELD_TYPE.STRING if column.character_set_name in {None, "binary"}:
            return f"binary({column.max_length})"
        case FIELD_TYPE.SET:
            return "set:" + "\0".join(column.set_values or [])
        case FIELD_TYPE.GEOMETRY:
            return "geometry"
        case _:
            return ""


def images(
    event: Any, row: Mapping[str, Any], columns: list[Column]
) -> tuple[Operation, dict[str, Json] | None, dict[str, Json] | None]:
    """Return the operation, and the row before and after."""
    match event:
        case WriteRowsEvent():
            return Operation.INSERT, None, _image(row["values"], row["none_sources"], columns)
        case DeleteRowsEvent():
            return Operation.DELETE, _image(row["values"], row["none_sources"], columns), None
        case UpdateRowsEvent():
            return (
                Operation.UPDATE,
                _image(row["before_values"], row["before_none_sources"], columns),
                _image(row["after_values"], row["after_none_sources"], columns),
            )
        case _:
            raise SourceUnusable("binlog", f"Unknown row event {type(event).__name__}.")


def _image(
    values: Mapping[str, Any], nulls: Mapping[str, str], columns: list[Column]
) -> dict[str, Json]:
    image: dict[str, Json] = {}
    for column in columns:
        value = values[column.name]
        reason = nulls.get(column.name, "") if value is None else ""
        if reason == NONE_SOURCE.COLS_BITMAP:
            raise SourceUnusable(
                "binlog_row_image",
                "The binlog has rows without all columns: set binlog_row_image=FULL; delete "
                "this source and create "
                "it again with a snapshot.",
            )
        if reason == NONE_SOURCE.EMPTY_SET:
            value = ""
        image[column.name] = binlog_value(value, column)
    return image


def binlog_value(value: Any, column: Column) -> Json:
    """Return a value from mysql-replication as JSON."""
    kind = column.data_type
    if value is None:
        return None
    if kind == "geometry":
        raise SourceUnusable("column_type", f"Column {column.name} can't be captured.")
    if kind == "timestamp":
        return f"{render(value)}Z"
    if kind == "float":
        return render(shortest_single(value))
    if kind.startswith("set:") and isinstance(value, set):
        return ",".join(member for member in kind[4:].split("\0") if member in value)
    if kind.startswith("binary(") and isinstance(value, bytes):
        # The binlog leaves trailing zero bytes out.
        return render(value.ljust(int(kind[7:-1]), b"\0"))
    return render(value)
