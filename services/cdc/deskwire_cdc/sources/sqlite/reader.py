"""The reader of SQLite files."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from deskwire_cdc.domain.changes import Batch
from deskwire_cdc.domain.sources import Source, SourceUnreachable, SourceUnusable
from deskwire_cdc.sources.port import Reader, ReaderOptions, SnapshotChunk
from deskwire_cdc.sources.pump import Pump
from deskwire_cdc.sources.sqlite import capture
from deskwire_cdc.sources.sqlite.files import Files, NotThere, refuse_own
from deskwire_cdc.sources.sqlite.loop import ChangeLoop
from deskwire_cdc.sources.sqlite.position import Position
from deskwire_cdc.sources.sqlite.tables import CHANGES, read_table
from deskwire_common.errors import InvalidArgument

_BUSY_SECONDS: Final = 5.0


def path_of(url: str) -> Path:
    """Return the file of `sqlite:///absolute/path`. Raises InvalidArgument."""
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        scheme = ""
    path = unquote(url.removeprefix("sqlite://"))
    if scheme != "sqlite" or not path.startswith("/") or len(path) < 2:
        raise InvalidArgument(
            "A SQLite source's url is sqlite:///absolute/path.", field="source.url"
        )
    # sqlite:////absolute/path is what some tools write; both mean the same file.
    return Path("/" + path.lstrip("/"))


class SqliteReader(Reader):
    """Reads one SQLite file."""

    def __init__(self, source: Source, options: ReaderOptions) -> None:
        super().__init__(source, options)
        self._path = path_of(source.url)
        self._files = Files(options.roots, options.own)
        self._pump = Pump(f"sqlite-{source.source_id}", options.max_batch)
        self._confirmed = 0

    async def check(self) -> None:
        """Refuse a file or tables that can't be captured."""
        await self._pump.call(self._check)

    async def start_position(self) -> str:
        """Return the position before the first change."""
        return await self._pump.call(lambda: Position(0, self._inode()).text())

    async def install(self) -> None:
        """Install the tables and triggers of capture."""
        await self._pump.call(self._install)

    async def remove(self) -> None:
        """Remove the triggers and tables. A mark that was there before stays: it is an adapter's."""
        await self._pump.call(self._remove)

    def first_cursor(self) -> str:
        """Return "": the snapshot comes within the stream."""
        return ""

    async def snapshot_chunk(self, cursor: str, position: str) -> SnapshotChunk:
        """Raise AssertionError: the snapshot comes within the stream."""
        raise AssertionError(f"no snapshot apart: {cursor}, {position}")

    def batches(self, position: str) -> AsyncGenerator[Batch, None]:
        """Yield the changes in `_deskwire_changes` from a position on."""

        def read(emit: Callable[[Batch], None], stopped: threading.Event) -> None:
            begin = Position.parse(position)
            self._confirmed = begin.number
            inode = self._inode()
            with self._connect() as connection:
                _check_history(begin, inode, connection)
                loop = ChangeLoop(
                    self.source,
                    connection,
                    self.options,
                    lambda: self._confirmed,
                    inode=inode,
                    same_file=lambda: self._inode() == inode,
                )
                loop.run(begin.number, emit, stopped)

        return self._pump.batches(read)

    async def confirm(self, position: str) -> None:
        """Let rows up to a position be deleted; the reading thread does so now and then."""
        self._confirmed = Position.parse(position).number

    async def close(self) -> None:
        """End the thread."""
        self._pump.close()

    # ----- in the thread

    def _inode(self) -> int:
        try:
            return self._files.allowed(self._path).stat().st_ino
        except OSError as error:
            raise NotThere(str(error)) from None

    @contextmanager
    def _connect(self, mode: str = "rw") -> Iterator[sqlite3.Connection]:
        file = self._files.allowed(self._path)
        try:
            # mode=rw: a wrong path must not become an empty database.
            with closing(
                sqlite3.connect(
                    f"{file.as_uri()}?mode={mode}",
                    uri=True,
                    timeout=_BUSY_SECONDS,
                    isolation_level=None,
                )
            ) as connection:
                connection.text_factory = lambda data: data.decode("utf-8", "replace")
                refuse_own(connection, file)
                yield connection
        except sqlite3.DatabaseError as error:
            text = str(error)
            if any(each in text for each in ("unable to open", "not a database", "malformed")):
                raise NotThere(f"{file}: {text}") from None
            if "readonly" in text:
                raise SourceUnusable(
                    "url", "The file can't be written: triggers need that."
                ) from None
            # A lock that somebody holds, most often.
            raise SourceUnreachable("url", f"The file can't be used now: {text}.") from error

    def _check(self) -> None:
        with self._connect("ro"):
            pass  # nothing is written to a file that may not be captured
        with self._connect() as connection:
            tables = {name: read_table(connection, name) for name in self.source.tables}
            capture.check_owner(self.source, capture.read_state(connection))
            with capture.immediate(connection):
                pass  # can it be written?
        rule = self.source.customer_rule
        if rule is not None:
            for name in rule.named_columns():
                if name not in tables[rule.table].columns:
                    raise SourceUnusable(
                        "customer_rule", f"Table {rule.table} has no column {name}."
                    )

    def _install(self) -> None:
        with self._connect() as connection:
            capture.install(self.source, connection, self.options.max_change_bytes)

    def _remove(self) -> None:
        try:
            with self._connect() as connection:
                capture.remove(self.source, connection)
        except NotThere:
            return  # the file is gone, is no database any more or may not be touched: nothing can be taken out


def _check_history(position: Position, inode: int, connection: sqlite3.Connection) -> None:
    """Refuse a position of another file, such as one that a backup has replaced: its rows are other ones."""
    row = connection.execute(
        "SELECT seq FROM sqlite_sequence WHERE name = ?", (CHANGES,)
    ).fetchone()
    if position.inode in {0, inode} and position.number <= (row[0] if row else 0):
        return
    raise SourceUnusable(
        "file_history",
        "The file isn't the one that was read up to the saved position: it was replaced, or capture was taken "
        "out of it. Delete this source and create it again with a snapshot.",
    )
