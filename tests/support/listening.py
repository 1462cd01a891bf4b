"""A listener that speaks no protocol: what a client makes of one that isn't what it wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any


@asynccontextmanager
async def listening(answer: bytes | None, callers: list[Any] | None = None) -> AsyncIterator[str]:
    """Yield the address of something on this machine that answers with these bytes and hangs up, or is silent (None).

    `callers` gets a task for each connection.
    """
    serving: list[Any] = [] if callers is None else callers

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        with suppress(ConnectionError):
            if answer is None:
                await reader.read()
            else:
                writer.write(answer)
                await writer.drain()
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.gather(*serving)
