"""Use cases of the hub: outside events and the catalogue, subscriptions, dead letters, the register of adapters."""

from __future__ import annotations

from deskwire_events.actions.adapters import REGISTRY, AdapterActions
from deskwire_events.actions.dead_letters import DeadLetterActions
from deskwire_events.actions.publishing import HUB, MAX_PUBLISH, EventActions
from deskwire_events.actions.subscriptions import SubscriptionActions
from deskwire_events.actions.webhooks import WebhookActions

__all__ = [
    "HUB",
    "MAX_PUBLISH",
    "REGISTRY",
    "AdapterActions",
    "DeadLetterActions",
    "EventActions",
    "SubscriptionActions",
    "WebhookActions",
]
