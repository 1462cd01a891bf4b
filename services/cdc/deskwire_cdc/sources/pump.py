"""Runs a blocking reader in a thread of its own, and hands its batches to the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from deskwire_cdc.domain.changes import Batch

T = TypeVar("T")

# Batches in hand while the sinks are slow: beyond it the log waits at the source, not in this process.
MAX_WAITING = 64


class Pump:
    """Runs a blocking reader in a thread of its own, and hands its batches to the event loop.

    `read(emit, stopped)` runs in the thread; `emit` blocks while MAX_WAITING batches are unread. Its exception is
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
        """Run a short call in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def batches(  # noqa: C901 - one loop, whose end needs care
        self, read: Callable[[Callable[[Batch], None], threading.Event], None]
    ) -> AsyncGenerator[Batch, None]:
        """Yield batches as `read` emits them."""
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
                # What came in while the last batch was delivered goes out as one: many small transactions cost
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
        """End the thread, whose reader has ended before."""
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
