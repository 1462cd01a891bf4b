"""An event on its way to one subscription, and the lane of its key."""

from __future__ import annotations

from collections import deque
from typing import Any, Final, TypeAlias

LaneKey: TypeAlias = tuple[str, bytes]
"""Topic and key: the same key on two topics is two things, each with its own order."""

#: Bytes that an item costs beside its body.
OVERHEAD: Final = 256


class Item:
    """One event for one subscription.

    `body` is whatever the sink sends, `size` its bytes. `attempts` counts how often it was sent, `refusals` how often
    it, not its target, failed; `since` is when that happened first (seconds, 0: never), `due` when it is tried again.
    `saved`: it is a row of the parked ones, behind the watermark.
    """

    __slots__ = (
        "attempts", "body", "detail", "due", "key", "offset", "partition", "refusals", "saved", "since",
        "size", "taken", "topic",
    )  # fmt: skip

    def __init__(
        self,
        topic: str,
        partition: int,
        offset: int,
        key: bytes,
        *,
        size: int,
        body: Any,
        taken: float = 0.0,
        saved: bool = False,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.key: LaneKey = (topic, key)
        self.size = size
        self.body = body
        self.taken = taken
        self.attempts = 0
        self.refusals = 0
        self.since = 0.0
        self.due = 0.0
        self.detail = ""
        self.saved = saved

    @property
    def place(self) -> tuple[str, int]:
        """Topic and partition."""
        return self.topic, self.partition

    def __repr__(self) -> str:
        return f"<Item {self.topic}[{self.partition}]@{self.offset}>"


class Lane:
    """The events of one key, in order.

    `queue` are those in memory; `stored` counts parked rows that aren't, which belong before the unsaved ones of the
    queue. `flight` is the one that is being sent, `due` when a parked lane goes on (None: it isn't parked).
    """

    __slots__ = ("due", "flight", "key", "loading", "queue", "stored")

    def __init__(self, key: LaneKey) -> None:
        self.key = key
        self.queue: deque[Item] = deque()
        self.flight: Item | None = None
        self.due: float | None = None
        self.stored = 0
        self.loading = False

    @property
    def empty(self) -> bool:
        """Whether nothing of the key is left."""
        return not self.queue and self.flight is None and not self.stored

    @property
    def ready(self) -> bool:
        """Whether its first event may be sent now."""
        return (
            self.flight is None
            and self.due is None
            and bool(self.queue)
            and (not self.stored or self.queue[0].saved)
        )

    @property
    def lacks(self) -> bool:
        """Whether its next event is a row that must be loaded first."""
        return (
            self.flight is None
            and self.due is None
            and bool(self.stored)
            and not self.loading
            and not (self.queue and self.queue[0].saved)
        )
