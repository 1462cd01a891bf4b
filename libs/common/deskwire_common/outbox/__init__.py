"""Outbox: the events of a transaction are rows of the same transaction, and a relay publishes them.

**The rule for callers:** lock the aggregate's row (an UPDATE of its version, or SELECT … FOR UPDATE) *before*
`Outbox.add`. Ids become visible out of order, but for one key they are then drawn in commit order, and the relay
keeps that order: it always takes the lowest unpublished rows, never "what is above the last id" (which lost 31 % of
events in a measurement), publishes them, and deletes them after their delivery reports. A relay with `keep`
moves them to `outbox_published` instead, for a while: for a broker that forgets.

What Kafka never takes is parked with its key, and the other keys go on (see parking.py).
"""

from __future__ import annotations

from deskwire_common.outbox.parking import ParkedRow, Parking
from deskwire_common.outbox.relay import Faults, OutboxRelay
from deskwire_common.outbox.rows import Outbox

__all__ = ["Faults", "Outbox", "OutboxRelay", "ParkedRow", "Parking"]
