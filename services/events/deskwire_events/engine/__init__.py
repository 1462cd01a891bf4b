"""The engine's pure parts: what a subscription has open, in which order it may go out, and when again.

Synchronous, without I/O and without a clock: times are seconds that the caller passes in. One process works on a
subscription at a time (its slot's owner), so nothing here is shared.

    take  ─► Window   which offsets of a partition are open; the lowest one is the watermark, which is saved
          └► Lanes    one event of a key in flight; a key whose event must be tried again is parked, others go on
    Throttle          how large a batch may be, how fast, and when a target that fails is tried again
"""

from __future__ import annotations

from deskwire_events.engine.backlog import Backlog, Saves
from deskwire_events.engine.item import Item, Lane, LaneKey
from deskwire_events.engine.lanes import Lanes
from deskwire_events.engine.throttle import Bucket, Throttle
from deskwire_events.engine.window import Window

__all__ = [
    "Backlog",
    "Bucket",
    "Item",
    "Lane",
    "LaneKey",
    "Lanes",
    "Saves",
    "Throttle",
    "Window",
]
