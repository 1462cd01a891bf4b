"""Looks up what a caller names."""

from __future__ import annotations

from deskwire_common.db import Database
from deskwire_events import domain, store
from deskwire_events.actions.checks import is_ascii
from deskwire_events.callers import tenant_caller
from deskwire_events.domain import Subscription


async def find(db: Database, subscription_id: str) -> Subscription:
    """A subscription of the caller's tenant, of any kind. Raises NotFound (SUBSCRIPTION_NOT_FOUND)."""
    found = None
    # Columns of ids are ASCII.
    if is_ascii(subscription_id):
        async with db.read() as connection:
            found = await store.subscriptions.get(
                connection, tenant_caller().tenant, subscription_id
            )
    if found is None or found.removed:
        raise domain.no_subscription(subscription_id)
    return found
