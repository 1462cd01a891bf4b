"""One child process with one adapter in it, and what it says."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from deskwire_adapter.child import EXIT_HANGS, EXIT_MEMORY, EXIT_UNUSABLE, SERVING
from deskwire_common import loops, texts
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS

_GRACE: Final = 3.0
_CHUNK: Final = 16_384
#: Bytes of a line, and lines a second, that are kept of what an adapter prints.
_LINE: Final = 500
_LINES: Final = 50
_HOW: Final = {
    EXIT_MEMORY: "memory",
    EXIT_HANGS: "hangs",
    EXIT_UNUSABLE: "unusable",
    0: "stopped",
}
_TOLD: Final = {
    "memory": "it ran out of memory",
    "hangs": "a call hung",
    "unusable": "it can't be loaded",
    "stopped": "it stopped",
    "killed": "it was killed",
    "crashed": "it crashed",
}


class AdapterProcess:
    """A running child; `socket` is where it serves. `how` says how it ended, "" while it runs."""

    def __init__(self, name: str, socket: Path, process: Process) -> None:
        self.name = name
        self.socket = socket
        self.how = ""
        self.ended = asyncio.Event()
        self.started_at = time.monotonic()
        self._process = process
        self._said: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._tasks = [
            asyncio.create_task(self._log(), name=f"adapter-{name}-log"),
            asyncio.create_task(self._listen(), name=f"adapter-{name}-listen"),
            asyncio.create_task(self._wait(), name=f"adapter-{name}"),
        ]

    @classmethod
    async def start(
        cls,
        name: str,
        socket: Path,
        *,
        memory: int,
        call_seconds: float,
        environment: Mapping[str, str],
    ) -> Self:
        """Begin a process. It serves when `serving` returns. Raises OSError."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deskwire_adapter.child", name),
            *("--socket", str(socket), "--memory", str(memory)),
            *("--call-seconds", str(call_seconds)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=dict(environment),
            cwd=socket.parent,
        )
        return cls(name, socket, process)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def told(self) -> str:
        """How it ended, for people."""
        return _TOLD.get(self.how, self.how)

    async def serving(self, seconds: float) -> str:
        """Wait until it serves; return "" then, else what it said or how it ended."""
        try:
            async with asyncio.timeout(seconds):
                said = await asyncio.shield(self._said)
        except TimeoutError:
            self.kill()
            return f"it didn't serve within {seconds:g} s"
        return "" if said == SERVING else said or self.told or "it ended"

    def kill(self) -> None:
        """SIGKILL."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def stop(self) -> None:
        """SIGTERM, and after a while SIGKILL."""
        self._stopping = True
        with suppress(ProcessLookupError):
            self._process.terminate()
        if not await loops.wait(self.ended, _GRACE):
            self.kill()
            await self.ended.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _wait(self) -> None:
        code = await self._process.wait()
        known = _HOW.get(code)
        self.how = known or ("killed" if code < 0 else "crashed")
        self.socket.unlink(missing_ok=True)
        self.ended.set()
        if not self._said.done():
            self._said.set_result("")
        if not self._stopping:
            METRICS.hub_adapter_exits.labels(self.name, self.how).inc()
            get_logger().warning("adapter_ended", adapter=self.name, how=self.how, code=code)

    async def _listen(self) -> None:
        async for line in _lines(self._process.stdout):
            if not self._said.done():
                self._said.set_result(texts.in_one_line(line))

    async def _log(self) -> None:
        """Write its lines into the log; of a flood only the first lines of each second."""
        since, count, dropped = 0.0, 0, 0
        async for line in _lines(self._process.stderr):
            now = time.monotonic()
            if now - since >= 1.0:
                if dropped:
                    get_logger().warning("adapter_floods_log", adapter=self.name, dropped=dropped)
                since, count, dropped = now, 0, 0
            count += 1
            if count <= _LINES:
                get_logger().info("adapter_says", adapter=self.name, text=texts.in_one_line(line))
            else:
                dropped += 1
                METRICS.hub_adapter_log_dropped.labels(self.name).inc()


async def _lines(stream: asyncio.StreamReader | None) -> AsyncIterator[str]:
    """The lines of a stream, cut off where they are long: one without an end must not fill the memory."""
    rest = b""
    while stream is not None and (chunk := await stream.read(_CHUNK)):
        *whole, rest = (rest + chunk).split(b"\n")
        rest = rest[:_LINE]
        for line in whole:
            yield line[:_LINE].decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """What a child gets of this process's environment: no setting of the hub's, and so no secret of it."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or name.startswith(("LC_", "DESKWIRE_ADAPTER_"))
    }
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


_KEPT: Final = frozenset(
    {"LANG", "PATH", "PYTHONPATH", "SSL_CERT_DIR", "SSL_CERT_FILE", "TMPDIR", "TZ", "VIRTUAL_ENV"}
)
