"""Captured tables as SQL: their triggers, and their rows as text that is exact for every value."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any, Final

from deskwire_cdc.domain.changes import Json, Row
from deskwire_cdc.domain.sources import SourceUnusable
from deskwire_cdc.sources.values import render, render_float

CHANGES: Final = "_deskwire_changes"
"""One row for each change: number, table, operation, the row before and after as JSON, mark, time."""
MARK: Final = "_deskwire_mark"
"""Has a row while an adapter writes: the triggers copy it, and marked changes are dropped."""
STATE: Final = "_deskwire_state"
"""Whose capture this is, and how far a snapshot is."""
FULL: Final = "full"
"""In the state: changes were lost, as too many waited."""
NOW: Final = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
# Half of SQLite's limit on the depth of an expression, at three levels a column.
MAX_COLUMNS: Final = 150


@dataclass(frozen=True, slots=True)
class Table:
    """A captured table as it is now."""

    name: str
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    has_rowid: bool

    def triggers(self, max_bytes: int) -> dict[str, str]:
        """Return trigger name → its CREATE statement.

        When more than `max_bytes` of changes wait, the triggers note that in the state and write nothing more: a
        capture that is away must not fill the owner's disk.
        """
        changes = {
            "insert": ("NULL", self.row_json("NEW")),
            "update": (self.row_json("OLD"), self.row_json("NEW")),
            "delete": (self.row_json("OLD"), "NULL"),
        }
        waiting = f"(SELECT total FROM {CHANGES} ORDER BY number DESC LIMIT 1)"  # noqa: S608 - our own names
        oldest = f"(SELECT total FROM {CHANGES} ORDER BY number LIMIT 1)"  # noqa: S608
        full = f"EXISTS (SELECT 1 FROM {STATE} WHERE name = '{FULL}')"  # noqa: S608
        # No OR IGNORE: what the owner's statement does at a conflict would replace it.
        note = (
            f"INSERT INTO {STATE} (name, value) SELECT '{FULL}', '1' "
            f"WHERE {waiting} - {oldest} >= {max_bytes:d} AND NOT {full}; "
        )
        return {
            f"_deskwire_{self.name}_{operation}": (
                f"CREATE TRIGGER {quoted(f'_deskwire_{self.name}_{operation}')} "  # noqa: S608 - quoted
                f"AFTER {operation.upper()} ON {quoted(self.name)} BEGIN {note}"
                f"INSERT INTO {CHANGES} (table_name, operation, key_names, row_before, row_after, mark, "
                f"changed_at, total) "
                f"SELECT {literal(self.name)}, '{operation}', {literal(json.dumps(self.keys))}, b, a, "
                f"(SELECT origin FROM {MARK} LIMIT 1), {NOW}, "
                f"coalesce({waiting}, 0) + {size('b')} + {size('a')} "
                f"FROM (SELECT {before} AS b, {after} AS a) WHERE NOT {full}; END"
            )
            for operation, (before, after) in changes.items()
        }

    def row_json(self, row: str) -> str:
        """Return an SQL expression of a row as JSON, built without functions that limit their arguments.

        In a trigger it runs in the owner's program, whose SQLite may take none but innocuous functions there
        (`PRAGMA trusted_schema=OFF`): `json_quote` isn't one.
        """
        parts = []
        for index, name in enumerate(self.columns):
            value = f"{row}.{quoted(name)}"
            lead = ("{" if index == 0 else ",") + json.dumps(name) + ":"
            encoded = (
                f"CASE typeof({value}) WHEN 'null' THEN 'null' "
                f"WHEN 'integer' THEN '\"i' || {value} || '\"' "
                f"WHEN 'real' THEN '\"r' || printf('%!.17g', {value}) || '\"' "
                f"WHEN 'blob' THEN '\"x' || hex({value}) || '\"' "
                f"ELSE {_json_text(value)} END"
            )
            parts.append(f"{literal(lead)} || {encoded}")
        return " || ".join(parts) + " || '}'"

    def order(self) -> tuple[str, ...]:
        """Return the columns by which snapshot chunks are ordered."""
        if self.has_rowid:
            name = next(n for n in ("_rowid_", "rowid", "oid") if n not in self.columns)
            return (name,)
        return tuple(quoted(name) for name in self.keys)


def size(text: str) -> str:
    """Return an SQL expression of a text's bytes."""
    return f"coalesce(length(CAST({text} AS BLOB)), 0)"


def _json_text(value: str) -> str:
    """Return an SQL expression of a text as JSON; control characters stay as they are, and the reader takes them."""
    escaped = f"replace(replace({value}, '\\', '\\\\'), '\"', '\\\"')"
    return f"'\"t' || {escaped} || '\"'"


def read_table(connection: sqlite3.Connection, name: str) -> Table:
    """Return a table's columns and keys. Raises SourceUnusable when it can't be captured."""
    found = connection.execute(
        "SELECT type, sql FROM sqlite_master WHERE name = ? AND type IN ('table', 'view')", (name,)
    ).fetchone()
    if found is None or found[0] != "table" or "VIRTUAL TABLE" in str(found[1]).upper()[:30]:
        raise SourceUnusable("tables", f"There is no table {name} in the file.")
    rows = connection.execute(f"PRAGMA table_xinfo({quoted(name)})").fetchall()
    columns = [(row[1], row[5]) for row in rows if row[6] != 1]  # 1: hidden in a virtual table
    if len(columns) > MAX_COLUMNS:
        raise SourceUnusable("tables", f"Table {name} has more than {MAX_COLUMNS} columns.")
    keys = tuple(column for column, position in columns if position)
    if not keys:
        raise SourceUnusable("primary_key", f"Table {name} has no primary key.")
    has_rowid = connection.execute(
        "SELECT wr FROM pragma_table_list WHERE schema = 'main' AND name = ?", (name,)
    ).fetchone()
    return Table(name, tuple(column for column, _ in columns), keys, not (has_rowid or (0,))[0])


def decode_row(text: str | None) -> Row | None:
    """Return a row that triggers wrote as JSON values, as events carry them."""
    if text is None:
        return None
    return {name: _rendered(value) for name, value in json.loads(text, strict=False).items()}


def decode(value: str | None) -> Any:
    """Return one value that triggers wrote as SQLite stores it."""
    if value is None:
        return None
    letter, rest = value[0], value[1:]
    match letter:
        case "i":
            return int(rest)
        case "r":
            return float(rest)
        case "x":
            return bytes.fromhex(rest)
        case _:
            return rest


def _rendered(value: str | None) -> Json:
    plain = decode(value)
    return render_float(plain) if isinstance(plain, float) else render(plain)


def encoded(value: str) -> str:
    """Return an SQL expression of one value, as `decode` reads it."""
    return (
        f"CASE typeof({value}) WHEN 'null' THEN NULL WHEN 'integer' THEN 'i' || {value} "
        f"WHEN 'real' THEN 'r' || printf('%!.17g', {value}) WHEN 'blob' THEN 'x' || hex({value}) "
        f"ELSE 't' || {value} END"
    )


def quoted(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as an SQL string."""
    return "'" + text.replace("'", "''") + "'"
