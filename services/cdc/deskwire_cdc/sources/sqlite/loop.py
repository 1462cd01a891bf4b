"""Following a captured file: its change rows, and snapshots among them.

A snapshot goes through the same table: chunks of rows are copied into `_deskwire_changes` under the file's write lock,
so they have their place among the changes, and a re-read after a crash gives the same numbers.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from deskwire_cdc.domain.changes import Batch, Change, Operation
from deskwire_cdc.domain.sources import Source, SourceUnreachable, SourceUnusable
from deskwire_cdc.sources.port import ReaderOptions
from deskwire_cdc.sources.rows import row_changes
from deskwire_cdc.sources.sqlite import capture
from deskwire_cdc.sources.sqlite.position import Position
from deskwire_cdc.sources.sqlite.tables import (
    CHANGES,
    FULL,
    NOW,
    STATE,
    Table,
    decode,
    decode_row,
    encoded,
    quoted,
    read_table,
    size,
)
from deskwire_common.clock import to_micros

PRUNE_ROWS: Final = 1000
PRUNE_SECONDS: Final = 2.0


class ChangeLoop:
    """Turns change rows into batches, in a thread. `confirmed` is the last change number that is saved."""

    def __init__(
        self,
        source: Source,
        connection: sqlite3.Connection,
        options: ReaderOptions,
        confirmed: Callable[[], int],
        *,
        inode: int,
        same_file: Callable[[], bool],
    ) -> None:
        self._source = source
        self._confirmed = confirmed
        self._connection = connection
        self._options = options
        self._inode = inode
        self._same_file = same_file
        self._schema_version = -1
        self._pruned = 0
        self._pruned_at = options.clock.monotonic()

    def run(self, number: int, emit: Callable[[Batch], None], stopped: threading.Event) -> None:
        """Read and emit until `stopped`. Raises SourceUnusable, and SourceUnreachable when the file was replaced."""
        seen = -1
        announced = False
        while not stopped.is_set():
            if not self._same_file():
                raise SourceUnreachable(
                    "url", "Another file is in the place of the one that was read."
                )
            version = self._pragma("data_version")
            copied = False
            if version != seen:
                seen = version
                self._look_at_schema()
                number = self._read(number, emit, stopped, snapshot=False)
                self._look_at_room()
            if snapshot := self._copy_chunk():
                copied = True
                number = self._read(number, emit, stopped, snapshot=snapshot)
                announced = False
            self._prune()
            if not copied:
                if not announced:
                    # The snapshot, if there was one, is over, and the source can be read.
                    emit(Batch((), self._position(number), 0))
                    announced = True
                stopped.wait(self._options.poll_seconds)

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    def _look_at_schema(self) -> None:
        if self._pragma("schema_version") == self._schema_version:
            return
        capture.install(self._source, self._connection, self._options.max_change_bytes)
        self._schema_version = self._pragma("schema_version")

    def _look_at_room(self) -> None:
        if FULL in capture.read_state(self._connection):
            raise SourceUnusable(
                CHANGES,
                f"More than {self._options.max_change_bytes} bytes of changes waited in the file, and later ones are "
                "in no event: delete this source and create it again with a snapshot.",
            )

    def _position(self, number: int) -> str:
        return Position(number, self._inode).text()

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
                f"SELECT number, table_name, operation, key_names, row_before, row_after, mark, changed_at "  # noqa: S608 - our own name
                f"FROM {CHANGES} WHERE number > ? ORDER BY number LIMIT ?",
                (number, limit),
            ).fetchall()
            if not rows:
                return number
            now = to_micros(self._options.clock.now())
            changes = [change for row in rows for change in self._changes(row, now)]
            number = rows[-1][0]
            emit(Batch(changes, self._position(number), len(rows), snapshot=snapshot))
            if len(rows) < limit:
                return number
        return number

    def _changes(self, row: Sequence[Any], now: int) -> list[Change]:
        number, table, operation, keys, before, after, mark, changed_at = row
        if mark is not None or (before is not None and before == after):
            return []
        if table not in self._source.tables:
            return []
        return row_changes(
            table,
            Operation(operation),
            # As they were then: a column may have another name by now.
            json.loads(keys),
            decode_row(before),
            decode_row(after),
            position=str(number),
            committed_at=changed_at,
            read_at=now,
        )

    def _copy_chunk(self) -> bool:
        """Copy the next rows of an unfinished snapshot among the changes; return whether there was one."""
        state = capture.read_state(self._connection)
        pending = [name for name in self._source.tables if f"snapshot:{name}" in state]
        if not pending:
            return False
        with capture.immediate(self._connection):
            cursor = capture.read_state(self._connection).get(f"snapshot:{pending[0]}")
            if cursor is not None:
                self._copy_rows(read_table(self._connection, pending[0]), json.loads(cursor))
        return True

    def _copy_rows(self, table: Table, after: list[Any] | None) -> None:
        order = table.order()
        names = ", ".join(f"t.{name}" for name in order)
        where = "" if after is None else f"WHERE ({names}) > ({', '.join('?' * len(order))})"
        arguments = () if after is None else tuple(decode(value) for value in after)
        # Encoded in the same query that finds where the chunk ends.
        last = ", ".join(encoded(f"t.{name}") for name in order)
        rows = self._connection.execute(
            f"SELECT {table.row_json('t')}, {last} FROM {quoted(table.name)} AS t {where} "  # noqa: S608 - names are quoted
            f"ORDER BY {names} LIMIT {self._options.max_batch}",
            arguments,
        ).fetchall()
        self._connection.executemany(
            f"INSERT INTO {CHANGES} (table_name, operation, key_names, row_after, changed_at, total) "  # noqa: S608 - our own names
            f"VALUES (?1, 'snapshot', ?2, ?3, {NOW}, {size('?3')} + "
            f"coalesce((SELECT total FROM {CHANGES} ORDER BY number DESC LIMIT 1), 0))",
            [(table.name, json.dumps(table.keys), row[0]) for row in rows],
        )
        name = f"snapshot:{table.name}"
        if len(rows) < self._options.max_batch:
            self._connection.execute(f"DELETE FROM {STATE} WHERE name = ?", (name,))  # noqa: S608 - our own name
        else:
            capture.set_state(self._connection, name, json.dumps(rows[-1][1:]))

    def _prune(self) -> None:
        confirmed, now = self._confirmed(), self._options.clock.monotonic()
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
