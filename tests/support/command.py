"""The deskwire command as a script runs it, with a home and ports of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from deskwire_cli.launch import Launch, serving


class Command:
    """`deskwire …` with a home and a port base of its own."""

    def __init__(self, home: Path, base: int, **environment: str) -> None:
        self.home = home
        self.base = base
        self._environment = {**os.environ, "DESKWIRE_HOME": str(home), **environment}

    def __call__(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "deskwire_cli", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    async def begin(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start it, for tests that do something while it runs; its stdout is a pipe."""
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "deskwire_cli", *arguments),
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
        )

    def up(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self("up", "-d", "--no-demo", "--port-base", str(self.base), *arguments)

    def status(self) -> tuple[int, dict[str, Any]]:
        done = self("status", "--json")
        return done.returncode, json.loads(done.stdout)


async def kill(launch: Launch, name: str) -> None:
    """Kill one service with kill -9, and start it again."""
    old = next(each for each, _ in reversed(launch.processes) if each.name == name)
    os.kill(old.pid, signal.SIGKILL)
    await old.ended()
    address = launch.plan.ports.address(name)
    new = launch._service(name)
    launch._begin(new, address)
    await new.ready(serving(address), timeout=60)
