"""SQLite: triggers in the external file write every changed row into a table that is read here.

In the external file, all named `_deskwire_…`:

- `_deskwire_changes`: one row per change: number, table, operation, the row before and after as
  JSON, mark, time. Rows
  that are delivered and saved are deleted again.
- `_deskwire_mark(origin)`: an adapter inserts a row in its own transaction, writes, and deletes
  the row again before it
  commits. The triggers copy the mark, and a marked change is dropped here: it came through
  deskwire.
- `_deskwire_state`: whose capture this is, and how far a snapshot is.
- triggers `_deskwire_<table>_insert`, `_update`, `_delete`.

A snapshot goes through the same table: chunks of rows are copied into `_deskwire_changes` under
the file's write lock,
so they have their place among the changes, and a re-read after a crash gives the same numbers.

JSON values are text with a letter for the stored type, exact for every value: `i42`, `r0.1`,
`tÄ`, `x00ff`, null.

When the schema changes, triggers are written anew and the table is read again (operation
`snapshot`), since what was
written between the schema change and the new triggers may be missing. Not seen, for SQLite fires
no trigger: the
rows that `INSERT OR REPLACE` removes because of a *secondary* unique key, unless the writer sets
`PRAGMA
recursive_triggers=ON`; a replaced row with the same primary key is seen as `insert`.
Delete the source before dropping a captured column: SQLite refuses to drop a column that a
trigger uses.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deskwire_cdc.domain import (
    Batch,
    Change,
    Json,
    Operation,
    Row,
    Source,
    SourceUnusable,
    parse_url,
)
from deskwire_cdc.sources.base import Pump, Reader, ReaderOptions, SnapshotChunk
from deskwire_cdc.sources.files import not_there, refuse_own
from deskwire_cdc.sources.rows import row_changes
from deskwire_cdc.sources.values import render, render_float
from deskwire_common.clock import to_micros

CHANGES, MARK, STATE = "_deskwire_changes", "_deskwire_mark", "_deskwire_state"
# In the state: the mark wasn't there before, and goes with the rest.
MADE_MARK = "made:mark"
BUSY_SECONDS = 5.0
# Half of SQLite's limit on the depth of an expression, at three levels a column.
MAX_COLUMNS = 150
PRUNE_ROWS = 1000
PRUNE_SECONDS = 2.0

TABLES = f"""
CREATE TABLE IF NOT EXISTS {MARK} (origin TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS {CHANGES} (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    table_name TEXT NOT NULL,
    operation TEXT NOT NULL,
    row_before TEXT,
    row_after TEXT,
    mark TEXT,
    changed_at INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS {STATE} (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
NOW = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"


@dataclass(frozen=True, slots=True)
class Table:
    """A captured table as it is now."""

    name: str
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    has_rowid: bool

    def triggers(self) -> dict[str, str]:
        """Trigger name → its CREATE statement."""
        changes = {
            "insert": ("NULL", self.row_json("NEW")),
            "update": (self.row_json("OLD"), self.row_json("NEW")),
            "delete": (self.row_json("OLD"), "NULL"),
        }
        return {
            f"_deskwire_{self.name}_{operation}": (
                f"CREATE TRIGGER {quoted(f'_deskwire_{self.name}_{operation}')} "  # noqa: S608 - quoted
                f"AFTER {operation.upper()} ON {quoted(self.name)} BEGIN "
                f"INSERT INTO {CHANGES} (table_name, operation, row_before, row_after, mark, "
                "changed_at) "
                f"VALUES ({literal(self.name)}, '{operation}', {before}, {after}, "
                f"(SELECT origin FROM {MARK} LIMIT 1), {NOW}); END"
            )
            for operation, (before, after) in changes.items()
        }

    def row_json(self, row: str) -> str:
        """SQL expression: a row as JSON, built without functions that limit their arguments."""
        parts = []
        for index, name in enumerate(self.columns):
            value = f"{row}.{quoted(name)}"
            lead = ("{" if index == 0 else ",") + json.dumps(name) + ":"
            encoded = (
                f"CASE typeof({value}) WHEN 'null' THEN 'null' "
                f"WHEN 'integer' THEN '\"i' || {value} || '\"' "
                f"WHEN 'real' THEN '\"r' || printf('%!.17g', {value}) || '\"' "
                f"WHEN 'blob' THEN '\"x' || hex({value}) || '\"' "
                f"ELSE json_quote('t' || {value}) END"
            )
            parts.append(f"{literal(lead)} || {encoded}")
        return " || ".join(parts) + " || '}'"

    def order(self) -> tuple[str, ...]:
        """What snapshot chunks go by."""
        if self.has_rowid:
            name = next(n for n in ("_rowid_", "rowid", "oid") if n not in self.columns)
            return (name,)
        return tuple(quoted(name) for name in self.keys)


class SqliteReader(Reader):
    """Reads one SQLite file."""

    def __init__(self, source: Source, options: ReaderOptions) -> None:
        super().__init__(source, options)
        self._path = Path(parse_url(source.kind, source.url).path)
        self._pump = Pump(f"sqlite-{source.source_id}", options.max_batch)
        self._confirmed = 0

    async def check(self) -> None:
        """Refuse a file or tables that can't be captured."""
        await self._pump.call(self._check)

    async def start_position(self) -> str:
        """Nothing was captured yet."""
        return "0"

    async def install(self) -> None:
        """Tables and triggers."""
        await self._pump.call(self._install)

    async def remove(self) -> None:
        """Triggers and tables. The mark stays where it was before: then it is an adapter's."""
        await self._pump.call(self._remove)

    def first_cursor(self) -> str:
        """The snapshot is within the stream."""
        return ""

    async def snapshot_chunk(self, cursor: str, position: str) -> SnapshotChunk:
        """The snapshot is within the stream."""
        raise AssertionError(f"no snapshot apart: {cursor}, {position}")

    def batches(self, position: str) -> AsyncGenerator[Batch, None]:
        """`_deskwire_changes` from position on."""

        def read(emit: Callable[[Batch], None], stopped: threading.Event) -> None:
            self._confirmed = int(position)
            with self._connect() as connection:
                _Loop(self, connection, self.options).run(int(position), emit, stopped)

        return self._pump.batches(read)

    async def confirm(self, position: str) -> None:
        """Rows up to position may go; the reading thread deletes them now and then."""
        self._confirmed = int(position)

    async def close(self) -> None:
        """Let the thread go."""
        self._pump.close()

    @property
    def confirmed(self) -> int:
        """The last change number that is saved."""
        return self._confirmed

    # ----- in the thread

    @contextmanager
    def _connect(self, mode: str = "rw") -> Iterator[sqlite3.Connection]:
        file = self.options.files.allowed(self._path)
        try:
            # mode=rw: a wrong path must not become an empty database.
            with closing(
                sqlite3.connect(
                    f"{file.as_uri()}?mode={mode}",
                    uri=True,
                    timeout=BUSY_SECONDS,
                    isolation_level=None,
                )
            ) as connection:
                connection.text_factory = lambda data: data.decode("utf-8", "replace")
                refuse_own(connection, file)
                yield connection
        except sqlite3.DatabaseError as error:
            text = str(error)
            if any(each in text for each in ("unable to open", "not a database", "malformed")):
                raise not_there(f"{file}: {text}") from None
            if "readonly" in text:
                raise SourceUnusable(
                    "url", "The file can't be written: triggers need that."
                ) from None
            raise

    def _check(self) -> None:
        with self._connect("ro"):
            pass  # nothing is written to a file that may not be captured
        with self._connect() as connection:
            tables = {name: read_table(connection, name) for name in self.source.tables}
            self._check_owner(_state(connection))
            with immediate(connection):
                pass  # can it be written?
        rule = self.source.customer_rule
        if rule is not None:
            for name in rule.named_columns():
                if name not in tables[rule.table].columns:
                    raise SourceUnusable(
                        "customer_rule", f"Table {rule.table} has no column {name}."
                    )

    def _check_owner(self, state: dict[str, str]) -> None:
        owner = state.get("owner", self.source.aggregate_id)
        if owner == self.source.aggregate_id:
            return
        tenant, _, name = owner.partition("/")
        # Another tenant's is named to nobody.
        other = f"source {name}" if tenant == self.source.tenant_id else "another source"
        raise SourceUnusable(
            STATE,
            f"The file is captured by {other}: delete that one, or drop the table {STATE} if it is gone for good.",
            detail=f"{self._path} is captured by {owner}",
        )

    def _install(self) -> None:
        with self._connect() as connection:
            self.install_in(connection)

    def install_in(self, connection: sqlite3.Connection) -> None:
        """Bring tables and triggers to what the schema asks for."""
        with immediate(connection):
            state = _state(connection)
            self._check_owner(state)
            if state and state.get("incarnation", "") > self.source.incarnation:
                # UUIDv7: the source was deleted and created again, and this reader is yesterday's.
                raise SourceUnusable(STATE, "A newer source captures this file.")
            if state and state.get("incarnation") != self.source.incarnation:
                # Left behind by an earlier creation of this same source: nobody reads its changes
                # any more.
                _drop(connection)
            if not state or state.get("incarnation") != self.source.incarnation:
                made = not _has_table(connection, MARK)
                _script(connection, TABLES)
                if made:
                    _set_state(connection, MADE_MARK, "1")
                _set_state(connection, "owner", self.source.aggregate_id)
                _set_state(connection, "incarnation", self.source.incarnation)
                state = {}
            for name in self.source.tables:
                table = read_table(connection, name)
                if not _replace_triggers(connection, table):
                    if state.get(f"snapshot:{name}"):
                        # VACUUM gives new rowids: begin the unfinished snapshot again.
                        _set_state(connection, f"snapshot:{name}", "null")
                    continue
                # Anew in a running capture: what came between the schema change and now has no
                # change rows.
                if state or self.source.snapshot:
                    _set_state(connection, f"snapshot:{name}", "null")

    def _remove(self) -> None:
        try:
            with self._connect() as connection, immediate(connection):
                state = _state(connection)
                if state.get("incarnation") in {None, self.source.incarnation}:
                    _drop(connection)
        except SourceUnusable:
            return  # the file is gone, is no database any more or may not be touched: nothing can be taken out


class _Loop:
    """Change rows → batches, in a thread."""

    def __init__(
        self, reader: SqliteReader, connection: sqlite3.Connection, options: ReaderOptions
    ) -> None:
        self._reader = reader
        self._connection = connection
        self._options = options
        self._keys: dict[str, tuple[str, ...]] = {}
        self._schema_version = -1
        self._pruned = 0
        self._pruned_at = options.clock.monotonic()

    def run(self, number: int, emit: Callable[[Batch], None], stopped: threading.Event) -> None:
        """Until stopped."""
        seen = -1
        said = False
        while not stopped.is_set():
            version = self._pragma("data_version")
            copied = False
            if version != seen:
                seen = version
                self._look_at_schema()
                number = self._read(number, emit, stopped, snapshot=False)
            if snapshot := self._copy_chunk():
                copied = True
                number = self._read(number, emit, stopped, snapshot=snapshot)
                said = False
            self._prune()
            if not copied:
                if not said:
                    # The snapshot, if there was one, is over; and the source is there.
                    emit(Batch((), str(number), 0))
                    said = True
                stopped.wait(self._options.poll_seconds)

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    def _look_at_schema(self) -> None:
        if self._pragma("schema_version") == self._schema_version:
            return
        self._reader.install_in(self._connection)
        self._keys = {
            name: read_table(self._connection, name).keys for name in self._reader.source.tables
        }
        self._schema_version = self._pragma("schema_version")

    def _read(
        self,
        number: int,
        emit: Callable[[Batch], None],
        stopped: threading.Event,
        *,
        snapshot: bool,
    ) -> int:
        limit = self._options.max_batch
        while not stopped.is_set():
            rows = self._connection.execute(
                f"SELECT number, table_name, operation, row_before, row_after, mark, changed_at "  # noqa: S608 - our own name
                f"FROM {CHANGES} WHERE number > ? ORDER BY number LIMIT ?",
                (number, limit),
            ).fetchall()
            if not rows:
                return number
            now = to_micros(self._options.clock.now())
            changes = [change for row in rows for change in self._changes(row, now)]
            number = rows[-1][0]
            emit(Batch(changes, str(number), len(rows), snapshot=snapshot))
            if len(rows) < limit:
                return number
        return number

    def _changes(self, row: Sequence[Any], now: int) -> list[Change]:
        number, table, operation, before, after, mark, changed_at = row
        if mark is not None or (before is not None and before == after):
            return []
        keys = self._keys.get(table)
        if keys is None:
            return []
        return row_changes(
            table,
            Operation(operation),
            keys,
            decode_row(before),
            decode_row(after),
            position=str(number),
            committed_at=changed_at,
            read_at=now,
        )

    def _copy_chunk(self) -> bool:
        """Copy the next rows of an unfinished snapshot among the changes; whether there was one."""
        state = _state(self._connection)
        pending = [name for name in self._reader.source.tables if f"snapshot:{name}" in state]
        if not pending:
            return False
        with immediate(self._connection):
            cursor = _state(self._connection).get(f"snapshot:{pending[0]}")
            if cursor is not None:
                self._copy_rows(read_table(self._connection, pending[0]), json.loads(cursor))
        return True

    def _copy_rows(self, table: Table, after: list[Any] | None) -> None:
        order = table.order()
        names = ", ".join(f"t.{name}" for name in order)
        where = "" if after is None else f"WHERE ({names}) > ({', '.join('?' * len(order))})"
        arguments = () if after is None else tuple(decode(value) for value in after)
        # Encoded in the same query that finds where the chunk ends.
        last = ", ".join(_encoded(f"t.{name}") for name in order)
        rows = self._connection.execute(
            f"SELECT {table.row_json('t')}, {last} FROM {quoted(table.name)} AS t {where} "  # noqa: S608 - names are quoted
            f"ORDER BY {names} LIMIT {self._options.max_batch}",
            arguments,
        ).fetchall()
        self._connection.executemany(
            f"INSERT INTO {CHANGES} (table_name, operation, row_after, changed_at) "  # noqa: S608 - our own names
            f"VALUES (?, 'snapshot', ?, {NOW})",
            [(table.name, row[0]) for row in rows],
        )
        name = f"snapshot:{table.name}"
        if len(rows) < self._options.max_batch:
            self._connection.execute(f"DELETE FROM {STATE} WHERE name = ?", (name,))  # noqa: S608 - our own name
        else:
            _set_state(self._connection, name, json.dumps(rows[-1][1:]))

    def _prune(self) -> None:
        confirmed, now = self._reader.confirmed, self._options.clock.monotonic()
        enough = confirmed - self._pruned >= PRUNE_ROWS
        idle = confirmed > self._pruned and now - self._pruned_at >= PRUNE_SECONDS
        if not (enough or idle):
            return
        self._pruned_at = now
        try:
            self._connection.execute(
                f"DELETE FROM {CHANGES} WHERE number <= ?",  # noqa: S608 - our own name
                (confirmed,),
            )
        except sqlite3.OperationalError:
            return  # somebody writes: later
        self._pruned = confirmed


def read_table(connection: sqlite3.Connection, name: str) -> Table:
    """A table's columns and keys; raises SourceUnusable when it can't be captured."""
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
    """A row as the triggers wrote it → JSON values as events carry them."""
    if text is None:
        return None
    return {name: _rendered(value) for name, value in json.loads(text).items()}


def decode(value: str | None) -> Any:
    """One value as the triggers wrote it → what SQLite stores."""
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


def _encoded(value: str) -> str:
    return (
        f"CASE typeof({value}) WHEN 'null' THEN NULL WHEN 'integer' THEN 'i' || {value} "
        f"WHEN 'real' THEN 'r' || printf('%!.17g', {value}) WHEN 'blob' THEN 'x' || hex({value}) "
        f"ELSE 't' || {value} END"
    )


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """An SQL string."""
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def immediate(connection: sqlite3.Connection) -> Iterator[None]:
    """A write transaction from its first statement on."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return connection.execute(query, (name,)).fetchone() is not None


def _state(connection: sqlite3.Connection) -> dict[str, str]:
    if not _has_table(connection, STATE):
        return {}
    return dict(connection.execute(f"SELECT name, value FROM {STATE}"))  # noqa: S608 - our own name


def _set_state(connection: sqlite3.Connection, name: str, value: str) -> None:
    connection.execute(
        f"INSERT INTO {STATE} (name, value) VALUES (?, ?) "  # noqa: S608 - our own name
        "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (name, value),
    )


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


def _replace_triggers(connection: sqlite3.Connection, table: Table) -> bool:
    """Whether there was anything to do."""
    wanted = table.triggers()
    found = _trigger_sql(connection, f"_deskwire_{table.name}_")
    if {name: found.get(name) for name in wanted} == wanted:
        return False
    for name, sql in wanted.items():
        connection.execute(f"DROP TRIGGER IF EXISTS {quoted(name)}")
        connection.execute(sql)
    return True


def _drop(connection: sqlite3.Connection) -> None:
    if MADE_MARK in _state(connection):
        connection.execute(f"DROP TABLE IF EXISTS {MARK}")
    for name in _trigger_sql(connection, "_deskwire_"):
        connection.execute(f"DROP TRIGGER IF EXISTS {quoted(name)}")
    for table in (CHANGES, STATE):
        connection.execute(f"DROP TABLE IF EXISTS {table}")
