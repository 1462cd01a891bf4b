"""A transaction of the binlog, held until its end says whether it was committed.

Rows that were rolled back are in the binlog, too, when the transaction wrote to something that can't be rolled
back, such as a temporary table: the group ends with ROLLBACK, or goes back to a savepoint.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Final

from deskwire_cdc.domain.changes import Change, change_from_json, change_to_json

#: Bytes of rows, as the binlog has them, that a transaction holds in memory; what is more waits in a file.
MAX_HELD_BYTES: Final = 8_000_000


@dataclass(slots=True)
class Transaction:
    """The changes of one transaction, in order, until it is committed or rolled back. `close` it then."""

    gtid: str
    dropped: bool = False
    """An adapter's own: its rows are counted, and not held."""
    standalone: bool = False
    """One event follows, without a COMMIT."""
    prepared: bool = False
    """Of an XA transaction, which is decided later."""
    max_held_bytes: int = MAX_HELD_BYTES
    rows: int = 0
    """Rows seen, the rolled back ones too: what a position within the transaction counts."""
    _held: list[tuple[int, list[Change]]] = field(default_factory=list)
    _held_bytes: int = 0
    _file: IO[str] | None = None
    _savepoints: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Name → where the file ended, and how many rows were held after that."""

    def add(self, changes: list[Change], size: int) -> None:
        """Hold the changes of the row that `rows` counts now; `size`: its bytes in the binlog."""
        self._held.append((self.rows, changes))
        self._held_bytes += size
        if self._held_bytes >= self.max_held_bytes:
            self._spill()

    def savepoint(self, name: str) -> None:
        """Note a savepoint; one of the same name is replaced."""
        self._savepoints.pop(name, None)
        self._savepoints[name] = self._file_end(), len(self._held)

    def rollback_to(self, name: str) -> None:
        """Forget what came after a savepoint; after an unknown one, which can't be, everything."""
        offset, count = self._savepoints.get(name, (0, 0))
        if self._file is not None and self._file_end() > offset:
            self._file.seek(offset)
            for _ in range(count):
                self._file.readline()
            self._file.truncate(self._file.tell())
            self._held.clear()
        else:
            del self._held[count:]
        names = list(self._savepoints)
        for later in names[names.index(name) + 1 :] if name in names else names:
            del self._savepoints[later]

    def changes(self) -> Iterator[tuple[int, list[Change]]]:
        """Yield each row's number and changes, in order."""
        if self._file is not None:
            self._file.seek(0)
            while line := self._file.readline():
                number, texts = json.loads(line)
                yield number, [change_from_json(text) for text in texts]
        yield from self._held

    def close(self) -> None:
        """Forget everything."""
        self._held.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _file_end(self) -> int:
        return 0 if self._file is None else self._file.seek(0, 2)

    def _spill(self) -> None:
        if self._file is None:
            # It has no name: nobody else can open it, and nothing is left of it after a kill.
            self._file = tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n")  # noqa: SIM115 - closed by `close`
        self._file.seek(0, 2)
        self._file.writelines(_line(number, changes) for number, changes in self._held)
        self._held.clear()
        self._held_bytes = 0


def _line(number: int, changes: Sequence[Change]) -> str:
    return json.dumps([number, [change_to_json(change) for change in changes]]) + "\n"
