"""The program of an adapter that the hub runs itself: `python -m deskwire_adapter.child NAME --socket PATH …`.

NAME is an entry point of the group `deskwire.adapters`. It serves on a Unix socket, says `serving` on stdout, and ends
with its parent: its stdin is a pipe that nobody writes to, and which ends when the parent does.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import importlib.metadata
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

from deskwire_adapter.base import AdapterBase
from deskwire_adapter.serving import serving
from deskwire_adapter.watch import Watch

GROUP: Final = "deskwire.adapters"
EXIT_MEMORY, EXIT_HANGS, EXIT_UNUSABLE = 80, 81, 82
"""Exit codes: it ran into its memory limit; a call or the loop hung; the entry point can't be loaded."""
SERVING: Final = "serving"
"""The line on stdout that says that the socket is there."""
_BEAT: Final = 0.5
_PR_SET_PDEATHSIG: Final = 1
_THREAD_STACK: Final = 1 << 20


def load(name: str) -> AdapterBase:
    """The adapter of an entry point. Raises LookupError, TypeError, and whatever its import raises."""
    found = list(importlib.metadata.entry_points(group=GROUP, name=name))
    if len(found) != 1:
        raise LookupError(f"{len(found)} entry points {name} in the group {GROUP}")
    adapter = found[0].load()()
    if not isinstance(adapter, AdapterBase):
        raise TypeError(f"the entry point {name} is no AdapterBase")
    return adapter


class Hangs(Watch):
    """Ends the process when a call takes longer than `seconds`, or the loop stands still for as long.

    A hung thread can't be ended any other way. The parent begins a new process.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._beat = time.monotonic()
        self._calls: dict[int, float] = {}
        self._number = 0

    @contextmanager
    def call(self) -> Iterator[None]:
        """Note a call."""
        self._number += 1
        number = self._number
        self._calls[number] = time.monotonic()
        try:
            yield
        finally:
            del self._calls[number]

    def out_of_memory(self) -> None:
        """What a process keeps after a MemoryError, nobody knows: a fresh one goes on."""
        leave(EXIT_MEMORY, "out of memory")

    async def beat(self) -> None:
        """Show that the loop turns, until cancelled."""
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(_BEAT)

    def watch(self) -> NoReturn:
        """Look, in a thread."""
        while True:
            time.sleep(_BEAT)
            since = min([self._beat, *list(self._calls.values())])
            if time.monotonic() - since > self._seconds:
                leave(EXIT_HANGS, "a call hangs")


def leave(code: int, why: str) -> NoReturn:
    """End at once, with nothing in between that could hang."""
    os.write(2, f"the adapter's process ends: {why}\n".encode())
    os._exit(code)


def follow_parent() -> None:
    """End when the parent does, however it ends."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=wait, name="parent", daemon=True).start()
    if sys.platform == "linux":
        # For a process whose threads all stand still, too.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(0)


def limit_memory(more: int) -> None:
    """Let this process take `more` bytes beside what it has by now, and write no core file.

    The limit is the one of data, not of addresses: malloc reserves 64 MB of addresses for each thread.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        data = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (data + more, data + more))


async def _serve(adapter: AdapterBase, socket: str, memory: int, seconds: float, out: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    hangs = Hangs(seconds)
    beating = asyncio.create_task(hangs.beat())
    threading.Thread(target=hangs.watch, name="watch", daemon=True).start()
    async with serving(adapter, f"unix:{socket}", watch=hangs):
        if memory:
            limit_memory(memory)
        os.write(out, f"{SERVING}\n".encode())
        await stop.wait()
    beating.cancel()


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(prog="deskwire_adapter.child")
    parser.add_argument("name")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--memory", type=int, default=0, help="bytes; 0: no limit")
    parser.add_argument("--call-seconds", type=float, default=35.0)
    given = parser.parse_args()
    # What the adapter prints is log; stdout is the host's.
    out = os.dup(1)
    os.dup2(2, 1)
    os.set_inheritable(out, False)
    os.umask(0o077)
    follow_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Stacks of threads count as memory.
    threading.stack_size(_THREAD_STACK)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    try:
        adapter = load(given.name)
    except Exception as error:
        logging.getLogger(__name__).exception("the adapter can't be loaded")
        os.write(out, f"{type(error).__name__}: {error}\n".encode()[:500])
        os._exit(EXIT_UNUSABLE)
    asyncio.run(_serve(adapter, given.socket, given.memory, given.call_seconds, out))
    os._exit(0)


if __name__ == "__main__":
    main()
