"""What capture puts into the external file, all named `_deskwire_…`: tables, triggers, and the state of it.

- `_deskwire_changes`: one row for each change, with the bytes of all so far. Rows that are delivered and saved are
  deleted again; when too many wait, nothing more is written, and the capture ends.
- `_deskwire_mark(origin)`: an adapter inserts a row in its own transaction, writes, and deletes the row again before
  it commits. A marked change came through deskwire and is dropped. The table goes with the rest, unless it was there
  before.
- `_deskwire_state`: whose capture this is, and how far a snapshot is.
- triggers `_deskwire_<table>_insert`, `_update`, `_delete`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from deskwire_cdc.domain.sources import Source, SourceUnusable
from deskwire_cdc.sources.sqlite.tables import CHANGES, MARK, STATE, Table, quoted, read_table

# In the state: the mark wasn't there before, and goes with the rest.
_MADE_MARK: Final = "made:mark"
_TABLES = f"""
CREATE TABLE IF NOT EXISTS {MARK} (origin TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS {CHANGES} (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    table_name TEXT NOT NULL,
    operation TEXT NOT NULL,
    key_names TEXT NOT NULL,
    row_before TEXT,
    row_after TEXT,
    mark TEXT,
    changed_at INTEGER NOT NULL,
    total INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS {STATE} (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


def check_owner(source: Source, state: Mapping[str, str]) -> None:
    """Check that no other source captures the file. Raises SourceUnusable."""
    owner = state.get("owner", source.aggregate_id)
    if owner == source.aggregate_id:
        return
    tenant, _, name = owner.partition("/")
    # Another tenant's is named to nobody.
    other = f"source {name}" if tenant == source.tenant_id else "another source"
    raise SourceUnusable(
        STATE,
        f"The file is captured by {other}: delete that one, or drop the table {STATE} if it is gone for good.",
        detail=f"the file of {source.aggregate_id} is captured by {owner}",
    )


def install(source: Source, connection: sqlite3.Connection, max_bytes: int) -> None:
    """Make the tables and triggers that the schema needs. A second call changes nothing.

    `max_bytes`: of changes that wait.
    """
    with immediate(connection):
        state = read_state(connection)
        check_owner(source, state)
        if state and state.get("incarnation", "") > source.incarnation:
            # UUIDv7: the source was deleted and created again, and this reader is yesterday's.
            raise SourceUnusable(STATE, "A newer source captures this file.")
        if state and state.get("incarnation") != source.incarnation:
            # Left behind by an earlier creation of this same source: nobody reads its changes any more.
            _drop(connection)
        if not state or state.get("incarnation") != source.incarnation:
            made = not _has_table(connection, MARK)
            _script(connection, _TABLES)
            if made:
                set_state(connection, _MADE_MARK, "1")
            set_state(connection, "owner", source.aggregate_id)
            set_state(connection, "incarnation", source.incarnation)
            state = {}
        for name in source.tables:
            table = read_table(connection, name)
            if not _replace_triggers(connection, table, max_bytes):
                if state.get(f"snapshot:{name}"):
                    # VACUUM gives new rowids: begin the unfinished snapshot again.
                    set_state(connection, f"snapshot:{name}", "null")
                continue
            # Anew in a running capture: what came between the schema change and now has no change rows.
            if state or source.snapshot:
                set_state(connection, f"snapshot:{name}", "null")


def remove(source: Source, connection: sqlite3.Connection) -> None:
    """Take out what `install` put in, unless a newer capture did."""
    with immediate(connection):
        if read_state(connection).get("incarnation") in {None, source.incarnation}:
            _drop(connection)


@contextmanager
def immediate(connection: sqlite3.Connection) -> Iterator[None]:
    """Run the block in a transaction that writes from its first statement on."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def read_state(connection: sqlite3.Connection) -> dict[str, str]:
    """Return what is noted in the file, by name; {}: it isn't captured."""
    if not _has_table(connection, STATE):
        return {}
    return dict(connection.execute(f"SELECT name, value FROM {STATE}"))  # noqa: S608 - our own name


def set_state(connection: sqlite3.Connection, name: str, value: str) -> None:
    """Write one value."""
    connection.execute(
        f"INSERT INTO {STATE} (name, value) VALUES (?, ?) "  # noqa: S608 - our own name
        "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (name, value),
    )


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return connection.execute(query, (name,)).fetchone() is not None


def _script(connection: sqlite3.Connection, script: str) -> None:
    # executescript() would commit the transaction that this is part of.
    for statement in script.split(";"):
        if statement.strip():
            connection.execute(statement)


def _trigger_sql(connection: sqlite3.Connection, like: str) -> dict[str, str]:
    return dict(
        connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND substr(name, 1, ?) = ?",
            (len(like), like),
        )
    )


def _replace_triggers(connection: sqlite3.Connection, table: Table, max_bytes: int) -> bool:
    """Whether there was anything to do."""
    wanted = table.triggers(max_bytes)
    found = _trigger_sql(connection, f"_deskwire_{table.name}_")
    if {name: found.get(name) for name in wanted} == wanted:
        return False
    for name, sql in wanted.items():
        connection.execute(f"DROP TRIGGER IF EXISTS {quoted(name)}")
        connection.execute(sql)
    return True


def _drop(connection: sqlite3.Connection) -> None:
    if _MADE_MARK in read_state(connection):
        connection.execute(f"DROP TABLE IF EXISTS {MARK}")
    for name in _trigger_sql(connection, "_deskwire_"):
        connection.execute(f"DROP TRIGGER IF EXISTS {quoted(name)}")
    for table in (CHANGES, STATE):
        connection.execute(f"DROP TABLE IF EXISTS {table}")
