"""What every reader of an external database can do."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from deskwire_cdc.domain import Batch, Change, Source
from deskwire_cdc.sources.files import Files
from deskwire_common.clock import Clock
from deskwire_common.targets import Targets

T = TypeVar("T")

# Batches in hand while the sinks are slow: beyond it the log waits at the source, not in this
# process.
MAX_WAITING = 64


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    """What readers need besides the source."""

    clock: Clock
    targets: Targets
    """Which addresses may be called."""
    files: Files
    """SQLite: which files may be opened."""
    max_batch: int = 500
    """Most row changes per batch."""
    mark_domain_id: int = 7410
    """MariaDB: transactions of this gtid_domain_id are an adapter's own writes, and dropped."""
    poll_seconds: float = 0.05
    """SQLite: how often data_version is looked at."""
    heartbeat_seconds: float = 1.0
    """MariaDB: how often an idle server says that it is there."""
    connect_timeout: float = 5.0
    read_timeout: float = 30.0
    """MariaDB: silence longer than this is a dead connection."""


@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """Some rows that were there before."""

    changes: Sequence[Change]
    cursor: str
    """Where the next chunk begins; empty: that was the last."""


class Reader(ABC):
    """Reads one external database.

    Methods may raise SourceUnusable, which names the setting to change.
    """

    def __init__(self, source: Source, options: ReaderOptions) -> None:
        self.source = source
        self.options = options

    @abstractmethod
    async def check(self) -> None:
        """Refuse a database that would lose changes silently. Reads only."""

    @abstractmethod
    async def start_position(self) -> str:
        """Where a new source begins: what is committed afterwards will be read. Reads only."""

    @abstractmethod
    async def install(self) -> None:
        """Whatever must be in the external database; twice is as good as once."""

    @abstractmethod
    async def remove(self) -> None:
        """Take out what `install` put in; twice is as good as once."""

    @abstractmethod
    def first_cursor(self) -> str:
        """Cursor of the first snapshot chunk.

        Empty when the reader brings its snapshot within the stream.
        """

    @abstractmethod
    async def snapshot_chunk(self, cursor: str, position: str) -> SnapshotChunk:
        """The rows from cursor on, as they are now."""

    @abstractmethod
    def batches(self, position: str) -> AsyncGenerator[Batch, None]:
        """Endless: everything after position, in log order."""

    @abstractmethod
    async def confirm(self, position: str) -> None:
        """Everything up to position is delivered and saved: the source may forget it."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of connections and threads."""


class Pump:
    """A blocking reader in a thread of its own, and its batches on the event loop.

    `read(emit, stopped)` runs in the thread; `emit` blocks while MAX_WAITING batches are unread.
    Its exception is
    raised out of `batches`.
    """

    def __init__(self, name: str, max_batch: int) -> None:
        self._max_batch = max_batch
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._stopped = threading.Event()

    @property
    def stopped(self) -> threading.Event:
        """Set when the reader should end."""
        return self._stopped

    async def call(self, work: Callable[[], T]) -> T:
        """Something short in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def batches(  # noqa: C901 - one loop, whose end needs care
        self, read: Callable[[Callable[[Batch], None], threading.Event], None]
    ) -> AsyncGenerator[Batch, None]:
        """Batches as `read` emits them."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Batch | None] = asyncio.Queue()
        room = threading.Semaphore(MAX_WAITING)

        def put(item: Batch | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, item)

        def emit(batch: Batch) -> None:
            while not room.acquire(timeout=0.2):
                if self._stopped.is_set():
                    return
            put(batch)

        def run() -> None:
            try:
                read(emit, self._stopped)
            finally:
                put(None)

        running = loop.run_in_executor(self._executor, run)
        try:
            ended = False
            while not ended and (batch := await queue.get()) is not None:
                room.release()
                # What came in while the last batch was delivered goes out as one: many small
                # transactions cost
                # one round trip to each sink, not one each.
                while not queue.empty() and len(batch.changes) < self._max_batch:
                    following = queue.get_nowait()
                    if following is None:
                        ended = True
                        break
                    room.release()
                    batch = _joined(batch, following)
                yield batch
            await running
        finally:
            self._stopped.set()
            if not running.done():
                # The thread looks at `stopped` at least once per heartbeat or poll.
                await asyncio.wait([running])
            if not running.cancelled():
                running.exception()

    def close(self) -> None:
        """Let the thread go; the reader has ended before."""
        self._stopped.set()
        self._executor.shutdown(wait=False)


def _joined(first: Batch, second: Batch) -> Batch:
    return Batch(
        changes=[*first.changes, *second.changes],
        position=second.position,
        read_count=first.read_count + second.read_count,
        snapshot=second.snapshot,
        notice=second.notice or first.notice,
    )
