"""Keeps a child process for each adapter that the operator allows: begun when needed, and again after it ended."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from deskwire_common.logging import get_logger
from deskwire_common.loops import Backoff
from deskwire_events.hosts.process import AdapterProcess, environment

#: Seconds that a process has to live for the next one to begin without a pause.
_STEADY: Final = 30.0
_ANSWER_SECONDS: Final = 3.0


class NotRunning(Exception):
    """The adapter's process isn't there. The message is the operator's; `retry_after` in seconds, None: any time."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class HostLimits:
    """What one process may take: bytes of memory, seconds of a call and of its start; pauses between starts."""

    memory: int = 512 << 20
    call_seconds: float = 35.0
    start_seconds: float = 20.0
    first_pause: float = 0.2
    longest_pause: float = 30.0


class _Kept:
    """One adapter: its process, if there is one, and when it may begin again."""

    def __init__(self, limits: HostLimits) -> None:
        self.lock = asyncio.Lock()
        self.process: AdapterProcess | None = None
        self.pauses = Backoff(limits.first_pause, limits.longest_pause)
        self.not_before = 0.0
        self.why = ""


class AdapterHost:
    """All children of this process. They live in a folder that only this user can open, and end with this process."""

    def __init__(
        self, allowed: frozenset[str], limits: HostLimits, more: Mapping[str, str] | None = None
    ) -> None:
        """`allowed` are names of entry points, `more` variables of the children's environment."""
        self._allowed = allowed
        self._limits = limits
        self._environment = environment(more or {})
        self._kept: dict[str, _Kept] = {}
        self._folder: Path | None = None
        self._closed = False

    @property
    def start_seconds(self) -> float:
        """How long `running` takes at the most."""
        return self._limits.start_seconds

    async def running(self, name: str) -> AdapterProcess:
        """The process of an adapter, which serves. Raises NotRunning."""
        if name not in self._allowed:
            raise NotRunning(f"DESKWIRE_PYTHON_ADAPTERS doesn't name {name}")
        kept = self._kept.setdefault(name, _Kept(self._limits))
        async with kept.lock:
            if self._closed:
                raise NotRunning("the hub stops")
            if kept.process is not None and kept.process.how:
                self._note_end(kept, kept.process)
                kept.process = None
            if kept.process is None:
                wait = kept.not_before - time.monotonic()
                if wait > 0:
                    raise NotRunning(kept.why, retry_after=wait)
                kept.process = await self._begin(name, kept)
            return kept.process

    async def suspect(self, process: AdapterProcess) -> None:
        """A call took too long: kill the process unless it still answers on its socket."""
        channel = grpc.aio.insecure_channel(f"unix:{process.socket}")
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await channel.channel_ready()
        except TimeoutError:
            if not process.how:
                get_logger().warning("adapter_silent", adapter=process.name)
                process.kill()
                await process.ended.wait()
        finally:
            await channel.close()

    async def close(self) -> None:
        """End all processes."""
        self._closed = True
        for kept in self._kept.values():
            async with kept.lock:
                if kept.process is not None:
                    await kept.process.stop()
                    kept.process = None
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _begin(self, name: str, kept: _Kept) -> AdapterProcess:
        try:
            if self._folder is None:
                # mkdtemp makes it 0700: the socket is no one else's to connect to.
                self._folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="deskwire-"))
            # A name of its own: a channel of the process before never meets the next one.
            socket = self._folder / f"{name[:16]}-{secrets.token_hex(4)}"
            process = await AdapterProcess.start(
                name,
                socket,
                memory=self._limits.memory,
                call_seconds=self._limits.call_seconds,
                environment=self._environment,
            )
        except OSError as error:
            self._pause(kept, str(error))
            raise NotRunning(kept.why) from error
        trouble = await process.serving(self._limits.start_seconds)
        if trouble:
            await process.stop()
            self._pause(kept, f"adapter {name} doesn't start: {trouble}")
            raise NotRunning(kept.why)
        get_logger().info("adapter_begins", adapter=name, pid=process.pid)
        return process

    def _note_end(self, kept: _Kept, process: AdapterProcess) -> None:
        if time.monotonic() - process.started_at >= _STEADY:
            kept.pauses.reset()
        self._pause(kept, f"the adapter's process ended: {process.told}")

    @staticmethod
    def _pause(kept: _Kept, why: str) -> None:
        kept.why = why
        kept.not_before = time.monotonic() + kept.pauses.next()
