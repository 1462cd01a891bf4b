"""The rows that are there before capture begins, in chunks by primary key."""

from __future__ import annotations

import decimal
import json
from collections.abc import Sequence
from typing import Any, Final

import pymysql

from deskwire_cdc.domain.changes import Change, Json, Operation
from deskwire_cdc.domain.sources import SourceUnusable
from deskwire_cdc.sources.mariadb.checks import Column
from deskwire_cdc.sources.mariadb.server import quoted
from deskwire_cdc.sources.port import SnapshotChunk
from deskwire_cdc.sources.values import render, shortest_single

#: Compared, as they are ordered, by number: their text has another order.
_BY_NUMBER: Final = frozenset(["enum", "set", "bit", "year"])
_TIMES: Final = frozenset(["date", "time", "datetime", "timestamp"])


def read_chunk(
    cursor: pymysql.cursors.Cursor,
    table: str,
    columns: Sequence[Column],
    after: Sequence[Any] | None,
    *,
    limit: int,
    position: str,
    now: int,
) -> tuple[list[Change], list[Any] | None]:
    """Return up to `limit` rows after a key, and the last one's key as JSON can keep it; None: that was all."""
    keys = [column for column in columns if column.is_key]
    order = ", ".join(quoted(column.name) for column in keys)
    wanted = ", ".join([*map(_selected, columns), *map(_place, keys)])
    where = ""
    if after is not None:
        place = [_argument(value, column) for value, column in zip(after, keys, strict=True)]
        # Not by the driver's %s: a column's name may have a %, too.
        where = f"WHERE ({', '.join(map(_compared, keys))}) > ({', '.join(map(cursor.connection.escape, place))})"
    cursor.execute(
        f"SELECT {wanted} FROM {quoted(table)} {where} ORDER BY {order} LIMIT {limit:d}"  # noqa: S608 - quoted and escaped
    )
    rows = cursor.fetchall()
    changes = []
    for values in rows:
        row = {
            column.name: _read_value(value, column)
            for column, value in zip(columns, values, strict=False)
        }
        key = {column.name: row[column.name] for column in keys}
        where_read = f"{position}/snapshot/{table}/{json.dumps(list(key.values()))}"
        changes.append(Change(table, Operation.SNAPSHOT, key, None, row, where_read, now, now))
    if len(rows) < limit:
        return changes, None
    last = [
        value.hex() if isinstance(value, bytes) else value for value in rows[-1][len(columns) :]
    ]
    if last == after:
        # Whatever its key's type does, a snapshot must end.
        raise SourceUnusable("primary_key", f"Table {table} can't be read in the order of its key.")
    return changes, last


def chunk_of(
    changes: Sequence[Change], table: str, last: list[Any] | None, tables: Sequence[str]
) -> SnapshotChunk:
    """Return a chunk with the cursor of the next one."""
    if last is not None:
        return SnapshotChunk(changes, json.dumps({"table": table, "after": last}))
    following = tables.index(table) + 1
    if following == len(tables):
        return SnapshotChunk(changes, "")
    return SnapshotChunk(changes, json.dumps({"table": tables[following], "after": None}))


def _selected(column: Column) -> str:
    name = quoted(column.name)
    # As text it has six digits.
    return f"CAST({name} AS DOUBLE)" if column.data_type == "float" else name


def _compared(column: Column) -> str:
    name = quoted(column.name)
    return f"{name} + 0" if column.data_type in _BY_NUMBER else name


def _place(column: Column) -> str:
    """Return the expression of a key column's place in the order, as text, number or bytes."""
    name = quoted(column.name)
    if column.data_type in _BY_NUMBER:
        return f"{name} + 0"
    return f"CAST({name} AS CHAR)" if column.data_type in {*_TIMES, "decimal"} else name


def _argument(value: Any, column: Column) -> Any:
    if column.data_type in {"binary", "varbinary"}:
        return bytes.fromhex(value)
    return decimal.Decimal(value) if column.data_type == "decimal" else value


def _read_value(value: Any, column: Column) -> Json:
    """Return a value from a SELECT as the same JSON as from the binlog."""
    kind = column.data_type
    if value is None:
        return None
    if kind == "bit" and isinstance(value, bytes):
        return f"{int.from_bytes(value, 'big'):0{column.bits}b}"
    if kind == "float":
        return render(shortest_single(value))
    if kind in {"date", "datetime", "timestamp"}:
        # The driver leaves a date that is no date as text.
        rendered = None if isinstance(value, str) else render(value)
        return f"{rendered}Z" if rendered is not None and kind == "timestamp" else rendered
    return render(value)
