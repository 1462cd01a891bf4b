"""What runs beside the connections: the timing wheel."""

from __future__ import annotations

import asyncio

from deskwire_gateway.sessions import Sessions


async def turn_wheel(sessions: Sessions) -> None:
    """Tick once a second until cancelled."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        due += 1.0
        await asyncio.sleep(max(0.0, due - loop.time()))
        sessions.tick()
