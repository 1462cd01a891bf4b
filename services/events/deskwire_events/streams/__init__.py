"""Subscribe: subscriptions whose sink is a stream that a client holds open."""

from __future__ import annotations

from deskwire_events.streams.named import Named
from deskwire_events.streams.service import Subscriptions

__all__ = ["Named", "Subscriptions"]
