"""The rules of the hub: subscriptions, filters, outcomes, cursors, and which topics carry what for whom. Pure."""

from __future__ import annotations

from deskwire_events.domain.cursors import Cursor, Cursors
from deskwire_events.domain.filters import Condition, Filter, Wanted
from deskwire_events.domain.outcomes import Limits, Outcome, Result, outcome_of
from deskwire_events.domain.readers import (
    READERS,
    Selection,
    is_own_type,
    readable,
    readable_topics,
    topics_of,
)
from deskwire_events.domain.subscriptions import (
    DEAD_LETTERED,
    KIND,
    SLOTS,
    Delivery,
    Progress,
    SinkKind,
    State,
    Subscription,
    after,
    check_system,
    not_found,
    register,
    registered_already,
    remove,
    slot_of,
)

__all__ = [
    "DEAD_LETTERED",
    "KIND",
    "READERS",
    "SLOTS",
    "Condition",
    "Cursor",
    "Cursors",
    "Delivery",
    "Filter",
    "Limits",
    "Outcome",
    "Progress",
    "Result",
    "Selection",
    "SinkKind",
    "State",
    "Subscription",
    "Wanted",
    "after",
    "check_system",
    "is_own_type",
    "not_found",
    "outcome_of",
    "readable",
    "readable_topics",
    "register",
    "registered_already",
    "remove",
    "slot_of",
    "topics_of",
]
