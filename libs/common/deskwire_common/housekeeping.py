"""What runs beside the calls of every service with a database: the outbox is measured, old requests are forgotten."""

from __future__ import annotations

import asyncio
from typing import Final

from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database
from deskwire_common.errors import DeskwireError
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_common.outbox import Outbox

#: Seconds between two clean-ups, and between two looks at the outbox.
PURGE_EVERY: Final = 600.0
MEASURE_EVERY: Final = 5.0


async def forget_requests(db: Database, idempotency: IdempotencyStore) -> None:
    """Remove responses older than a day, until cancelled; outlasts a database that is away."""
    while True:
        try:
            removed = await idempotency.purge(db)
        except DeskwireError as error:
            get_logger().warning("requests_not_forgotten", error=str(error))
        else:
            if removed:
                get_logger().info("requests_forgotten", count=removed)
        await asyncio.sleep(PURGE_EVERY)


async def measure_outbox(db: Database, outbox: Outbox, clock: Clock) -> None:
    """Keep the outbox's gauges, until cancelled; outlasts a database that is away."""
    while True:
        try:
            count, oldest = await outbox.pending(db)
        except DeskwireError as error:
            get_logger().warning("outbox_not_measured", error=str(error))
        else:
            METRICS.outbox_depth.set(count)
            lag = (to_micros(clock.now()) - oldest) / 1e6 if count else 0.0
            METRICS.outbox_lag_seconds.set(max(lag, 0.0))
        await asyncio.sleep(MEASURE_EVERY)
