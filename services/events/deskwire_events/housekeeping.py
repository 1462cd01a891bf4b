"""What is cleaned up."""

from __future__ import annotations

from functools import partial
from typing import Final

from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import AWAY, Database, UnitOfWork
from deskwire_common.loops import every
from deskwire_events import store

#: Ends that are kept per subscription, and seconds between clean-ups.
KEEP: Final = 10_000
CLEAN_EVERY: Final = 60.0


#: Seconds that the ids are known which outside systems gave their events.
KNOW_IDS: Final = 7 * 86_400


async def forget_ids(db: Database, clock: Clock) -> None:
    """Forget old ids of events, until cancelled."""

    async def forget() -> None:
        before = to_micros(clock.now()) - KNOW_IDS * 1_000_000
        while await db.run(lambda uow: store.external_ids.forget(uow, before)):
            pass

    await every(CLEAN_EVERY, forget, failed="ids_not_forgotten", outlast=AWAY)


async def trim_deliveries(db: Database) -> None:
    """Forget surplus ends of deliveries, until cancelled."""

    async def trim() -> None:
        async with db.read() as connection:
            found = await store.deliveries.incarnations(connection, KEEP)
        for incarnation in found:
            while await db.run(partial(_trim, incarnation)):
                pass

    await every(CLEAN_EVERY, trim, failed="deliveries_not_trimmed", outlast=AWAY)


async def forget_deleted(db: Database) -> None:
    """Forget what the workers of deleted subscriptions saved after the deletion, until cancelled."""

    async def forget() -> None:
        async with db.read() as connection:
            found = await store.subscriptions.left_over(connection)
        for incarnation in found:
            await db.run(partial(_forget, incarnation))

    await every(CLEAN_EVERY, forget, failed="deleted_not_forgotten", outlast=AWAY)


async def _forget(incarnation: str, uow: UnitOfWork) -> None:
    await store.subscriptions.forget(uow, incarnation)


async def _trim(incarnation: str, uow: UnitOfWork) -> int:
    return await store.deliveries.trim(uow, incarnation, keep=KEEP)
