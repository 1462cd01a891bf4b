"""Use cases of the hub: publishing outside events, the catalogue, and the register of adapters."""

from __future__ import annotations

from deskwire_events.actions.adapters import REGISTRY, AdapterActions
from deskwire_events.actions.publishing import HUB, MAX_PUBLISH, EventActions

__all__ = ["HUB", "MAX_PUBLISH", "REGISTRY", "AdapterActions", "EventActions"]
