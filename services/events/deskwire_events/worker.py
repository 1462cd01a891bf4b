"""Deliveries: one worker per registered adapter, in the hub process that owns its slot; and what is cleaned up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common.clock import Clock
from deskwire_common.db import AWAY, Database
from deskwire_common.kafka import Consumer
from deskwire_common.logging import get_logger
from deskwire_common.loops import Backoff, every
from deskwire_common.metrics import METRICS
from deskwire_common.ownership import Held
from deskwire_events import spine, store
from deskwire_events.adapters import MAX_BATCH, OpenAdapter
from deskwire_events.delivery import Delivering, Ledger
from deskwire_events.domain import Adapter, AdapterState, topics_of

KIND: Final = "adapter"
#: Deliveries that are kept per adapter, and seconds between clean-ups.
KEEP: Final = 10_000
CLEAN_EVERY: Final = 60.0
_FIRST_PAUSE: Final = 0.2
_MAX_PAUSE: Final = 30.0


def slot_of(adapter: Adapter) -> str:
    """The slot of an adapter's registration."""
    return f"{adapter.tenant}/{adapter.adapter_id}/{adapter.registration}"


async def slots_of_adapters(connection: AsyncConnection) -> list[str]:
    """The slots of all adapters that are registered and not stopped."""
    adapters = await store.adapters.every(connection)
    return [slot_of(each) for each in adapters if each.state is not AdapterState.STOPPED]


@dataclass(slots=True)
class Deliveries:
    """Delivers to adapters, each of them a slot of one hub process."""

    kafka: str
    ledger: Ledger
    open_adapter: OpenAdapter
    clock: Clock
    protocol: Literal["consumer", "classic"] = "consumer"

    async def work(self, held: Held) -> None:
        """Deliver to the adapter of a slot until cancelled."""
        async with self.ledger.db.read() as connection:
            found = [
                each for each in await store.adapters.every(connection) if slot_of(each) == held.id
            ]
        if found:
            await self._deliver(found[0])

    async def _deliver(self, adapter: Adapter) -> None:
        """One adapter's worker. Whatever goes wrong in it stays in it, and it begins again."""
        log = get_logger().bind(tenant=adapter.tenant, adapter_id=adapter.adapter_id)
        log.info("delivering", target=adapter.target)
        delivering = Delivering(
            adapter, self.ledger, open_adapter=self.open_adapter, clock=self.clock
        )
        pauses = Backoff(_FIRST_PAUSE, _MAX_PAUSE)
        try:
            while True:
                consumer = Consumer(
                    self.kafka,
                    adapter.group,
                    spine.patterns(topics_of(adapter.wanted)),
                    start="earliest",
                    client_id=f"deskwire-hub-{adapter.adapter_id}",
                    protocol=self.protocol,
                )
                before = delivering.handled
                try:
                    await consumer.run(delivering.handle, max_records=MAX_BATCH)
                except Exception as error:
                    if delivering.handled > before:
                        pauses.reset()
                    METRICS.background_crashes.labels("deliver").inc()
                    log.warning("delivery_failed", failures=pauses.failures + 1, exc_info=error)
                # Uncommitted records come again: at least once.
                await pauses.pause()
        finally:
            await delivering.close()
            log.info("delivering_ended")


async def trim_deliveries(db: Database) -> None:
    """Forget surplus deliveries, until cancelled."""

    async def trim() -> None:
        async with db.read() as connection:
            adapters = await store.adapters.every(connection)
        for adapter in adapters:
            await _trim(db, adapter)

    await every(CLEAN_EVERY, trim, failed="deliveries_not_trimmed", outlast=AWAY)


async def _trim(db: Database, adapter: Adapter) -> None:
    while await db.run(
        lambda uow: store.deliveries.trim(uow, adapter.tenant, adapter.adapter_id, keep=KEEP)
    ):
        pass
