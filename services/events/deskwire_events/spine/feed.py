"""A feed: what one subscription wants of the spine, and how far it has come on each partition."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_events.domain.filters import Filter
from deskwire_events.domain.readers import Selection
from deskwire_events.spine.carried import Carried

Place: TypeAlias = tuple[str, int]
"""Topic and partition."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Records from `wanted` up to `kept` are gone: the topic no longer keeps them, or was made anew."""

    topic: str
    partition: int
    wanted: int
    kept: int


class Taker(Protocol):
    """Who gets the records of a feed. None of its methods blocks."""

    def take(self, carried: Carried) -> bool:
        """Take a record that the filter passes, in order per partition; False: no room, again after `resume`."""
        ...

    def began(self, place: Place, offset: int) -> None:
        """The feed has a partition that it hadn't: of a topic that is new."""
        ...

    def lost(self, lost: Lost) -> None:
        """Records are gone that weren't taken; reading goes on at the first that is kept."""
        ...


class Cursor:
    """One partition of a feed. While it is `joined`, `next` only says below what it wants nothing."""

    __slots__ = ("joined", "next")

    def __init__(self, offset: int) -> None:
        self.next = offset
        self.joined = False


class Feed:
    """What a subscription reads: its topics, a filter, and a cursor per partition."""

    __slots__ = ("again", "attached", "cursors", "filter", "queued", "room", "selection", "taker")

    def __init__(
        self, selection: Selection, filter_: Filter, places: Mapping[Place, int], taker: Taker
    ) -> None:
        self.selection = selection
        self.filter = filter_
        self.taker = taker
        self.cursors = {place: Cursor(offset) for place, offset in places.items()}
        self.attached = False
        # Of the catch-up readers: it has its turn or waits for it, and is wanted once more.
        self.queued = False
        self.again = False
        self.room = asyncio.Event()

    def give(self, carried: Carried) -> bool:
        """Give a record to the taker; False when it has no room.

        A record that makes the taker fail is passed over, and said: otherwise it would end the process of all tenants,
        and again after each start.
        """
        try:
            return self.taker.take(carried)
        except Exception as error:  # noqa: BLE001 - any tenant's record
            METRICS.background_crashes.labels("take").inc()
            get_logger().error(
                "record_not_taken",
                topic=carried.topic,
                partition=carried.partition,
                offset=carried.offset,
                exc_info=error,
            )
            return True
