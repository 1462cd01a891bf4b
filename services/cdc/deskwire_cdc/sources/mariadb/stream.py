"""The connection that the binlog comes by: mysql-replication, with its quiet ways of losing things closed.

- It reconnects by itself at the position that it was opened with. Here a lost connection ends the reader, and the
  follower opens a new one at the saved position.
- It replaces labels of ENUM and SET that aren't UTF-8 by nothing, and ends at a status variable that it doesn't know.
"""

from __future__ import annotations

import zlib
from typing import Any

from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.event import QueryEvent
from pymysqlreplication.row_event import TableMapEvent

from deskwire_cdc.domain.sources import Source, SourceUnreachable
from deskwire_cdc.sources.mariadb.position import Position
from deskwire_cdc.sources.mariadb.server import Server
from deskwire_cdc.sources.port import ReaderOptions


class ConnectionLost(SourceUnreachable):
    """The stream broke; a new reader goes on at the saved position."""

    def __init__(self, message: str) -> None:
        super().__init__("url", message)


def _read_type_values(self: Any, length: int) -> list[list[str]]:
    """Return the labels of ENUM and SET columns, a character for each byte: their charset comes elsewhere."""
    found = []
    end = self.packet.read_bytes + length
    while self.packet.read_bytes < end:
        count = self.packet.read_length_coded_binary()
        found.append(
            [self.packet.read_variable_length_string().decode("latin-1") for _ in range(count)]
        )
    return found


def _sync_column_info(self: Any) -> None:
    """Give each column the number of its collation, which the library translates to a codec of its own choice."""
    _library_sync(self)
    texts = iter(self.optional_metadata.charset_collation_list or [])
    labels = iter(self.optional_metadata.enum_and_set_collation_list or [])
    for column in self.columns:
        if self._is_character_column(column.type, dbms=self.dbms):
            column.charset_id = next(texts, None)
        elif self._is_enum_or_set_column(column.type):
            column.charset_id = next(labels, None)


def _skip_status_variables(self: Any, _key: int) -> None:
    self.packet.advance(self.status_vars_length - 1)


# The library makes its events by a table of its own that takes no others: so its classes are mended in place.
_library_sync = TableMapEvent._sync_column_info  # noqa: SLF001
TableMapEvent._sync_column_info = _sync_column_info  # noqa: SLF001
TableMapEvent._read_type_values = _read_type_values  # noqa: SLF001
QueryEvent._read_status_vars_value_for_key = _skip_status_variables  # noqa: SLF001


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
        if "db" in arguments:
            arguments["database"] = arguments.pop("db")  # the driver's name of it
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
