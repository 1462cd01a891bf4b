"""The adapter that is examined: where it is, what it is told, and how it is begun and killed."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

PYTHON: Final = "python:"
_START_SECONDS: Final = 20.0


class NotThere(Exception):
    """Nothing answers at the target. The message says what to do."""


@dataclass
class Subject:
    """An adapter at `target`: `host:port`, or `python:NAME` for an installed entry point, which the kit runs itself.

    `command` begins a server at host:port; with it, or with `python:`, the kit can kill it. `config` and `credentials`
    are what a registration would have. `event_type` and `data` are those of the events; unset: the first type that its
    Schema names, and a few fields.
    """

    target: str
    command: str = ""
    tenant_id: str = "conformance"
    config: str = ""
    credentials: Mapping[str, str] = field(default_factory=dict)
    event_type: str = ""
    data: Mapping[str, Any] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    _process: Process | None = None
    _folder: Path | None = None

    @property
    def ours(self) -> bool:
        """Whether the kit began it, and may kill it."""
        return bool(self.command) or self.target.startswith(PYTHON)

    @property
    def address(self) -> str:
        """What gRPC connects to."""
        if self.target.startswith(PYTHON):
            return f"unix:{self._socket}"
        return self.target

    @property
    def _socket(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="deskwire-"))
        return self._folder / "adapter"

    async def begin(self) -> None:
        """Begin it where it is ours, and wait until it answers. Raises NotThere."""
        if self.ours:
            await self._start()
        channel = self.channel()
        try:
            async with asyncio.timeout(_START_SECONDS if self.ours else 3.0):
                await channel.channel_ready()
        except TimeoutError:
            raise NotThere(
                f"nothing answers at {self.target}: start the adapter, or give its --command"
            ) from None
        finally:
            await channel.close()

    def channel(self) -> grpc.aio.Channel:
        """A connection of its own."""
        return grpc.aio.insecure_channel(
            self.address,
            options=[
                ("grpc.enable_http_proxy", 0),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.default_authority", "localhost"),
                ("grpc.initial_reconnect_backoff_ms", 100),
            ],
        )

    async def kill(self) -> None:
        """Kill -9."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def end(self) -> None:
        """Stop it where it is ours."""
        await self.kill()
        if self._folder is not None:
            self._socket.unlink(missing_ok=True)
            self._folder.rmdir()
            self._folder = None

    async def _start(self) -> None:
        if self.command:
            words = shlex.split(self.command)
        else:
            self._socket.unlink(missing_ok=True)
            name = self.target.removeprefix(PYTHON)
            words = [
                *(sys.executable, "-m", "deskwire_adapter.child", name),
                *("--socket", str(self._socket)),
            ]
        try:
            self._process = await asyncio.create_subprocess_exec(
                *words,
                stdin=PIPE,
                stdout=DEVNULL,
                stderr=None,
                env={**os.environ, **self.environment},
            )
        except OSError as error:
            raise NotThere(f"can't run {words[0]}: {error}") from error
