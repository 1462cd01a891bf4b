"""The only SQL of the hub: tables, and queries that take an open connection, each limited to one tenant."""

from deskwire_events.store import adapters, deliveries, subjects
from deskwire_events.store.tables import METADATA

__all__ = ["METADATA", "adapters", "deliveries", "subjects"]
