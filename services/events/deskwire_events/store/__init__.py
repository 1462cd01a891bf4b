"""The only SQL of the hub: tables, and queries that take an open connection.

Those that serve requests are limited to one tenant, or take the incarnation of a subscription that was read so.
"""

from deskwire_events.store import (
    deliveries,
    external_ids,
    kept,
    keys,
    places,
    subjects,
    subscriptions,
)
from deskwire_events.store.tables import METADATA

__all__ = [
    "METADATA",
    "deliveries",
    "external_ids",
    "kept",
    "keys",
    "places",
    "subjects",
    "subscriptions",
]
