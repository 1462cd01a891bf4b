"""Deliveries: one worker per registered adapter, of all hub processes in one; and what is cleaned up."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from deskwire_common.clock import Clock
from deskwire_common.db import Database
from deskwire_common.errors import DeskwireError
from deskwire_common.kafka import Consumer
from deskwire_common.leadership import Lease, lead
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_common.rpc import Tls
from deskwire_events import spine, store
from deskwire_events.clients import MAX_BATCH
from deskwire_events.delivery import Delivering, Ledger
from deskwire_events.domain import Adapter, AdapterState, topics_of

LEADER: Final = "deliveries"
#: Seconds between looks at the adapters when nobody wakes the supervisor.
POLL: Final = 1.0
#: Deliveries that are kept per adapter, and seconds between clean-ups.
KEEP: Final = 10_000
CLEAN_EVERY: Final = 60.0
_MAX_PAUSE: Final = 30.0


@dataclass(slots=True)
class Deliveries:
    """Keeps a worker running for each adapter that is registered and not stopped."""

    kafka: str
    ledger: Ledger
    tls: Tls | None
    clock: Clock
    protocol: Literal["consumer", "classic"] = "consumer"
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Lead and deliver until cancelled; outlasts a database that is away."""
        db = self.ledger.db
        while True:
            try:
                async with lead(db, LEADER, poll=POLL) as lease:
                    await self._lead(lease)
            except DeskwireError as error:
                get_logger().warning("deliveries_not_led", error=str(error))
                await asyncio.sleep(POLL)

    async def _lead(self, lease: Lease) -> None:
        tasks: dict[tuple[str, str, int], asyncio.Task[None]] = {}
        try:
            while lease.held:
                # Cleared before reading: a commit after the read sets it again.
                self.wake.clear()
                await self._reconcile(tasks)
                try:
                    async with asyncio.timeout(POLL):
                        await self.wake.wait()
                except TimeoutError:
                    continue
        finally:
            await _end(list(tasks.values()))

    async def _reconcile(self, tasks: dict[tuple[str, str, int], asyncio.Task[None]]) -> None:
        async with self.ledger.db.read() as connection:
            adapters = await store.all_adapters(connection)
        wanted = {
            (adapter.tenant, adapter.adapter_id, adapter.registration): adapter
            for adapter in adapters
            if adapter.state is not AdapterState.STOPPED
        }
        gone = [key for key in tasks if key not in wanted]
        await _end([tasks.pop(key) for key in gone])
        for key, adapter in wanted.items():
            if key not in tasks:
                name = f"deliver-{adapter.adapter_id}"
                tasks[key] = asyncio.create_task(self._deliver(adapter), name=name)

    async def _deliver(self, adapter: Adapter) -> None:
        """One adapter's worker. Whatever goes wrong in it stays in it, and it begins again."""
        log = get_logger().bind(tenant=adapter.tenant, adapter_id=adapter.adapter_id)
        log.info("delivering", target=adapter.target)
        delivering = Delivering(adapter, self.ledger, tls=self.tls, clock=self.clock)
        failures = 0
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
                    failures = 1 if delivering.handled > before else failures + 1
                    METRICS.background_crashes.labels("deliver").inc()
                    log.warning("delivery_failed", failures=failures, exc_info=error)
                # Uncommitted records come again: at least once.
                await asyncio.sleep(pause_after(failures))
        finally:
            await delivering.close()
            log.info("delivering_ended")


def pause_after(failures: int) -> float:
    """Seconds until the next try: growing, and with jitter, so that many don't come at once."""
    top: float = min(0.1 * 2 ** min(failures, 20), _MAX_PAUSE)
    return top * random.uniform(0.5, 1.0)  # noqa: S311 - jitter


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def trim_deliveries(db: Database) -> None:
    """Forget surplus deliveries, until cancelled; outlasts a database that is away."""
    while True:
        try:
            async with db.read() as connection:
                adapters = await store.all_adapters(connection)
            for adapter in adapters:
                await _trim(db, adapter)
        except DeskwireError as error:
            get_logger().warning("deliveries_not_trimmed", error=str(error))
        await asyncio.sleep(CLEAN_EVERY)


async def _trim(db: Database, adapter: Adapter) -> None:
    while await db.run(
        lambda uow: store.trim_deliveries(uow, adapter.tenant, adapter.adapter_id, keep=KEEP)
    ):
        pass
