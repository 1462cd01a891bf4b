"""Whose the topics of captured tables are: their names don't say it, their records do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Final

from deskwire_common import topics
from deskwire_common.logging import get_logger
from deskwire_events.spine.broker import Broker, Tap

_READ: Final = 1_000
_WAIT: Final = 0.1
_PEEK_SECONDS: Final = 5.0


class Tables:
    """The topics of captured tables, and the tenants whose records are in each; none: it is empty still."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._owners: dict[str, set[bytes]] = {}

    def owners(self, topic: str) -> set[bytes] | None:
        """The tenants of a table that is known; None for other topics."""
        return self._owners.get(topic)

    def of(self, tenant: bytes) -> list[str]:
        """The tables of a tenant."""
        return sorted(name for name, owners in self._owners.items() if tenant in owners)

    def wanted_by(self, tenants: Iterable[bytes]) -> list[str]:
        """The tables of these tenants, and those that are nobody's yet: they are read to learn whose they are."""
        some = set(tenants)
        return [name for name, owners in self._owners.items() if not owners or owners & some]

    async def find(self) -> None:
        """Look for new ones, and learn whose they are from one record of each. Raises Unavailable."""
        names = {
            name
            for name in await self._broker.topics()
            if re.match(topics.CHANGES_PATTERN, name) and not self._owners.get(name)
        }
        if not names:
            return
        for name in names:
            self._owners.setdefault(name, set())
        await self._peek(names)

    async def _peek(self, names: Iterable[str]) -> None:
        bounds = await self._broker.bounds(await self._broker.partitions(names))
        last = {place: kept.high - 1 for place, kept in bounds.items() if kept.high > kept.low}
        if not last:
            return
        waiting = {topic for topic, _ in last}
        tap = Tap(self._broker.bootstrap, "hub-peek", prefetch_kb=1_024)
        try:
            await tap.assign(last)
            try:
                async with asyncio.timeout(_PEEK_SECONDS):
                    while waiting:
                        records, _ = await tap.poll(_READ, _WAIT)
                        for carried in records:
                            if carried.tenant:
                                self._owners[carried.topic].add(carried.tenant)
                            waiting.discard(carried.topic)
            except TimeoutError:
                get_logger().warning("tables_without_tenant", topics=sorted(waiting)[:10])
        finally:
            await tap.close()
