"""The only SQL of change capture's own database: tables, and queries that take an open connection.

What callers ask for is limited to one tenant; the workers see all sources. Every write of a worker is fenced by the
source's `term`: whoever lost the source to another process can't move its position back.
"""

from deskwire_cdc.store import progress, refused, sources
from deskwire_cdc.store.tables import METADATA

__all__ = ["METADATA", "progress", "refused", "sources"]
