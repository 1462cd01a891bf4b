"""Child processes: each in a session of its own, with a log file, and never outliving this process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deskwire_cli.machine.home import os_error
from deskwire_cli.machine.problem import Problem

_CHILD: Final = Path(__file__).with_name("child.py")
Probe = Callable[[], str]
"""Answers "" when the process is ready, else what is still missing."""
_MAX_LOG_BYTES: Final = 50_000_000
"""A log larger than this many bytes is moved aside (to .1) at the next start."""


@dataclass(slots=True)
class Process:
    """One child. `start` it in the main thread: it dies with the thread that started it.

    `name` is its log's and pid file's; `user` the account it runs as (root only); `grace` the seconds between
    SIGTERM (or `stop_signal`) and SIGKILL.
    """

    name: str
    command: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    user: str = ""
    pid_file: Path | None = None
    grace: float = 15.0
    stop_signal: signal.Signals = signal.SIGTERM
    _child: subprocess.Popen[bytes] | None = None
    _log_start: int = 0

    def start(self) -> None:
        """Start it; returns at once. Raises Problem when the log can't be written."""
        try:
            if self.log.exists() and self.log.stat().st_size > _MAX_LOG_BYTES:
                self.log.replace(self.log.with_name(self.log.name + ".1"))
            with self.log.open("ab") as log:
                self._log_start = log.tell()
                command = [sys.executable, "-I", "-S", str(_CHILD), str(os.getpid()), self.user]
                self._child = subprocess.Popen(
                    [*command, *self.command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **self.env},
                    cwd=self.cwd,
                    start_new_session=True,
                )
            if self.pid_file is not None:
                self.pid_file.write_text(f"{self._child.pid}\n")
        except OSError as error:
            raise Problem(f"can't start {self.name}: {os_error(error)}") from None

    @property
    def pid(self) -> int:
        """Its process id; 0 before the start."""
        return self._child.pid if self._child is not None else 0

    @property
    def exit_code(self) -> int | None:
        """None while it runs (or wasn't started); negative: the signal that ended it."""
        return self._child.poll() if self._child is not None else None

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def how_it_ended(self) -> str:
        """One line: the exit code or signal, and the last line of its log."""
        code = self.exit_code
        if code is None:
            return f"{self.name} runs"
        ended = (
            f"was killed by {signal.Signals(-code).name}"
            if code < 0
            else f"ended with exit code {code}"
        )
        last = self.last_line()
        return f"{self.name} {ended}{f': {last}' if last else ''} (log: {self.log})"

    def last_line(self) -> str:
        """The last line of this run in its log, shortened."""
        try:
            with self.log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, size - 4000))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1].strip()[:300] if lines else ""

    def wait_ready(
        self, probe: Probe, *, timeout: float, stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Block until the probe answers "" (ready). Raises Problem when it dies or is not ready in time."""
        deadline = time.monotonic() + timeout
        pause = 0.02
        while missing := probe():
            if not self.running:
                raise Problem(self.how_it_ended())
            if stop():
                raise Problem(f"{self.name} was not awaited")
            if time.monotonic() > deadline:
                raise Problem(
                    f"{self.name} is not ready after {timeout:g} s: {missing} (log: {self.log})"
                )
            time.sleep(pause)
            pause = min(0.2, pause * 1.5)

    async def ready(self, probe: Probe, *, timeout: float) -> None:
        """`wait_ready` on a thread of its own."""
        cancelled = False
        try:
            await asyncio.to_thread(self.wait_ready, probe, timeout=timeout, stop=lambda: cancelled)
        except asyncio.CancelledError:
            cancelled = True
            raise

    async def ended(self) -> int:
        """Wait until it has ended; its exit code."""
        if (child := self._child) is None:
            raise RuntimeError(f"{self.name} was not started")
        if sys.platform != "linux":
            return await asyncio.to_thread(child.wait)
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        descriptor = os.pidfd_open(child.pid)  # readable when the process has ended
        loop.add_reader(descriptor, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        return child.wait()

    def signal(self, number: signal.Signals) -> None:
        """Signal its whole session, so that what it started stops with it."""
        if self._child is not None and self._child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)

    def stop(self) -> None:
        """Ask it to stop, wait `grace` seconds, kill it; returns when it is gone. Blocks."""
        child = self._child
        if child is None:
            return
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, self.stop_signal)
            try:
                child.wait(self.grace)
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGKILL)
                child.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # processes that it left behind
        if self.pid_file is not None:
            self.pid_file.unlink(missing_ok=True)

    async def stopped(self) -> None:
        """`stop` on a thread of its own; finishes even when the caller is cancelled."""
        await asyncio.shield(asyncio.to_thread(self.stop))


def python_environment() -> dict[str, str]:
    """For children that are Python: nothing buffered, so that logs are whole when one is killed."""
    return {"PYTHONUNBUFFERED": "1"}
