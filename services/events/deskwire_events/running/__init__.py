"""Subscriptions at work in the process that owns their slots.

Keeper      which run here: gained and lost with slots, begun anew when a row changes
Subscriber  one of them: its backlog between the spine and the sink; Pusher pushes it to a sink,
                Streamer hands it to the streams that read it
Ledger      what all of them must save, every tick in one transaction under their slots' terms
"""

from __future__ import annotations

from deskwire_events.running.keeper import Keeper
from deskwire_events.running.ledger import Ledger
from deskwire_events.running.pusher import Pusher
from deskwire_events.running.streamer import Consumer, Streamer
from deskwire_events.running.subscriber import Begin, End, Subscriber, Unit

__all__ = [
    "Begin",
    "Consumer",
    "End",
    "Keeper",
    "Ledger",
    "Pusher",
    "Streamer",
    "Subscriber",
    "Unit",
]
