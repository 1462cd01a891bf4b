"""The index of feeds: tenant → event type → feeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from deskwire_events.spine.carried import Carried
from deskwire_events.spine.feed import Feed

_ALL: Final = b""
"""The place of feeds that want every type."""


class Index:
    """Finds the feeds of a record by two look-ups, however many feeds there are."""

    def __init__(self) -> None:
        self._by_tenant: dict[bytes, dict[bytes, list[Feed]]] = {}

    def add(self, feed: Feed) -> None:
        """Have a feed found."""
        kinds = self._by_tenant.setdefault(feed.filter.tenant, {})
        for kind in feed.filter.kinds or {_ALL}:
            kinds.setdefault(kind, []).append(feed)

    def remove(self, feed: Feed) -> None:
        """Have a feed found no more."""
        kinds = self._by_tenant.get(feed.filter.tenant, {})
        for kind in feed.filter.kinds or {_ALL}:
            feeds = kinds.get(kind, [])
            if feed in feeds:
                feeds.remove(feed)
            if not feeds:
                kinds.pop(kind, None)
        if not kinds:
            self._by_tenant.pop(feed.filter.tenant, None)

    def find(self, carried: Carried) -> Sequence[Feed]:
        """The feeds that may want a record: of its tenant, and of its type or of all types."""
        kinds = self._by_tenant.get(carried.tenant)
        if kinds is None:
            return ()
        some = kinds.get(carried.kind)
        everything = kinds.get(_ALL)
        if some and everything:
            return [*some, *everything]
        return some or everything or ()
