"""Several workers under one command: each a process of its own (spawned, not forked) on the same ports.

The kernel spreads connections over them (SO_REUSEPORT). Each has its own link to chat and its own entry in the session
directory. One that dies is started again; the others don't notice. Their metrics are read together at
DESKWIRE_METRICS_LISTEN, each with the label `worker`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Final

from deskwire_common.config import split_address
from deskwire_common.logging import get_logger, setup_logging
from deskwire_common.loops import Backoff
from deskwire_common.metrics import serve_workers_metrics
from deskwire_gateway.config import Settings

_FIRST_PAUSE: Final = 0.4
_LONGEST_PAUSE: Final = 10.0
"""Seconds before a worker that ended is started again; see Backoff."""
_STEADY: Final = 30.0
"""Seconds of running after which a worker's next end counts as a first one."""
_KILL_AFTER: Final = 5.0


class _Worker:
    """One process, started again whenever it ends."""

    def __init__(self, number: int, metrics: str) -> None:
        self.number = number
        self.metrics = metrics
        self._environment = {
            **os.environ,
            "DESKWIRE_WORKERS": "1",
            "DESKWIRE_WORKER": str(number),
            "DESKWIRE_METRICS_LISTEN": metrics,
        }
        self._pauses = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        self.process: subprocess.Popen[bytes]
        self._started = 0.0
        self.due = 0.0

    def start(self) -> None:
        # A pipe to its stdin: it closes when this process ends, even when killed, and then the worker ends.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deskwire_gateway", "serve"],
            env=self._environment,
            stdin=subprocess.PIPE,
        )
        self._started = time.monotonic()
        self.due = 0.0

    def look(self, now: float) -> None:
        """Start it again when it has ended, after a longer pause each time."""
        if self.due:
            if now >= self.due:
                self.start()
            return
        code = self.process.poll()
        if code is None:
            return
        if now - self._started > _STEADY:
            self._pauses.reset()
        pause = self._pauses.next()
        get_logger().error(
            "worker_ended", worker=self.number, code=code, again_in_seconds=round(pause, 2)
        )
        self.due = now + pause


def supervise(settings: Settings) -> int | None:
    """Run DESKWIRE_WORKERS workers until SIGTERM or SIGINT; None when there is to be one, which is this process.

    Raises OSError when a port is taken: workers share their ports, so they can't see that another program has it.
    """
    if settings.workers == 1:
        return None
    setup_logging("gateway", settings.log_level)
    for address in (settings.ws_address, split_address(settings.grpc_listen)):
        _check_free(*address)
    stopping = False

    def stop(_number: int, _frame: Any) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    workers = [_Worker(number, address) for number, address in enumerate(_free(settings.workers))]
    metrics = serve_workers_metrics(settings.metrics_listen, [worker.metrics for worker in workers])
    try:
        for worker in workers:
            worker.start()
        while not stopping:
            time.sleep(0.05)
            for worker in workers:
                worker.look(time.monotonic())
        _stop(workers, settings.drain_seconds + _KILL_AFTER)
    finally:
        if metrics is not None:
            metrics.close()
    return 0


def _stop(workers: list[_Worker], seconds: float) -> None:
    for worker in workers:
        worker.process.terminate()
    deadline = time.monotonic() + seconds
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            get_logger().error("worker_killed", worker=worker.number)
            worker.process.kill()
            worker.process.wait()


def _check_free(host: str, port: int) -> None:
    if port == 0:
        raise OSError("several workers need a port that they share: port 0 is for one worker")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(f"can't listen on {host}:{port}: {error.strerror}") from None


def _free(count: int) -> list[str]:
    """Addresses for the workers' own metrics."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return addresses


# -------------------------------------------------------------------------------------- in a worker


async def end_with_parent() -> None:
    """Stop this worker when the process that started it is gone."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(0, ended.set)  # nothing is ever written there: it becomes readable at its end
    try:
        await ended.wait()
    finally:
        loop.remove_reader(0)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.Event().wait()
