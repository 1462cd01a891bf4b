"""The spine: one reader for all subscriptions of a process.

    reader ─► Ring      what came last of a partition, bounded in bytes
           ─► Index     tenant → type → feeds, by headers alone
           ─► Feed      one subscription; one that has no room stays behind, alone
    CatchUp             a few readers for feeds that are behind the ring; they join it when they have caught up

No consumer groups: who reads what is decided by slots, and the places are the hub's own.
"""

from __future__ import annotations

from deskwire_events.spine.broker import Bounds, Broker
from deskwire_events.spine.carried import Carried
from deskwire_events.spine.feed import Feed, Lost
from deskwire_events.spine.spine import Spine

__all__ = ["Bounds", "Broker", "Carried", "Feed", "Lost", "Spine"]
