"""Reads topics as a subscriber without a group does."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from deskwire_common import events
from deskwire_common.errors import InvalidArgument
from deskwire_common.kafka import Reader


async def read_rows(bootstrap: str, topic: str) -> list[dict[str, Any]]:
    """Return a topic's events from start to end, each once, as a killed process may have sent one twice."""
    reader = Reader(bootstrap, [topic], start="earliest")
    await reader.start()
    found: dict[str, dict[str, Any]] = {}
    try:
        ends = await reader.end_offsets()
        while any(reader.positions[place] < end for place, end in ends.items()):
            for record in await reader.read(500, 0.2):
                # What is no event is from a test of such.
                with suppress(InvalidArgument):
                    event = events.to_json(events.decode(topic, record.value, record.headers))
                    found.setdefault(event["event_id"], event)
    finally:
        await reader.close()
    return list(found.values())
