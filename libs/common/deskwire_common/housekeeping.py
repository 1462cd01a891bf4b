"""Background work of every service with a database: measure the outbox, forget old requests."""

from __future__ import annotations

from typing import Final

from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import AWAY, Database
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.logging import get_logger
from deskwire_common.loops import every
from deskwire_common.metrics import METRICS
from deskwire_common.outbox import Outbox, Parking

#: Seconds between two clean-ups, and between two looks at the outbox.
PURGE_EVERY: Final = 600.0
MEASURE_EVERY: Final = 5.0


async def forget_requests(db: Database, idempotency: IdempotencyStore) -> None:
    """Remove responses older than a day, until cancelled."""

    async def forget() -> None:
        removed = await idempotency.purge(db)
        if removed:
            get_logger().info("requests_forgotten", count=removed)

    await every(PURGE_EVERY, forget, failed="requests_not_forgotten", outlast=AWAY)


async def measure_outbox(db: Database, outbox: Outbox, clock: Clock) -> None:
    """Keep the outbox's gauges current, until cancelled."""

    parking = Parking(db, outbox)

    async def measure() -> None:
        count, oldest = await outbox.pending(db)
        METRICS.outbox_depth.set(count)
        lag = (to_micros(clock.now()) - oldest) / 1e6 if count else 0.0
        METRICS.outbox_lag_seconds.set(max(lag, 0.0))
        METRICS.outbox_parked.set(await parking.count())

    await every(MEASURE_EVERY, measure, failed="outbox_not_measured", outlast=AWAY)
