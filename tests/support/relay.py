"""A TCP relay in front of a server, which can hold back the server's bytes, break, or vanish."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Relay:
    """Passes bytes between its port and another one."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.breaks_on = b""
        """A connection on which a client sends these bytes breaks, and the server never gets them."""
        self.broken = 0
        self._target = target
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self.release()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def vanish(self) -> None:
        """Break all connections, and take no new ones."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hold(self) -> None:
        """Hold back what the server sends; what clients send still reaches it."""
        self._down.clear()

    def freeze(self) -> None:
        """Pass nothing on in either direction, and close nothing: a cut cable, or a node without power."""
        self._up.clear()
        self._down.clear()

    def release(self) -> None:
        """Pass on the bytes that were held, and everything after them."""
        self._up.set()
        self._down.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            up, down = await asyncio.open_connection("127.0.0.1", self._target)
            with contextlib.closing(down), contextlib.suppress(ConnectionError):
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pass_on(reader, down, self._up))
                    group.create_task(self._pass_on(up, writer, self._down))
        except* (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_open: asyncio.Event
    ) -> None:
        while data := await reader.read(65_536):
            await is_open.wait()
            if is_open is self._up and self.breaks_on and self.breaks_on in data:
                self.broken += 1
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def relay(target: int) -> AsyncIterator[Relay]:
    """Run a relay to a port of this machine while the block runs."""
    found = Relay(target)
    await found.listen()
    try:
        yield found
    finally:
        await found.vanish()
