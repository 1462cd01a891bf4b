"""Hands the backlog of a named subscription to the streams that read it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from deskwire_common import loops
from deskwire_common.clock import Clock
from deskwire_common.db import Database
from deskwire_events.domain import Filter, Limits, Outcome, Result
from deskwire_events.engine import Item, LaneKey
from deskwire_events.running.subscriber import Begin, Subscriber
from deskwire_events.sinks import clean
from deskwire_events.spine import Carried, Spine

#: Seconds that a subscription without readers stays in memory.
LINGER: Final = 10.0
#: Events that are handed to one stream in one go.
_BATCH: Final = 200
_BATCH_BYTES: Final = 1 << 20
_IDLE: Final = 60.0


@dataclass(eq=False, slots=True)
class Consumer:
    """One stream that reads the subscription. `room` is what it still takes, in events and bytes.

    `ready` are events to send, with the number that this stream knows each by; `flying` all that it hasn't answered.
    """

    within: float
    """Seconds that an event may take."""
    room: tuple[int, int]
    wake: asyncio.Event
    ready: deque[tuple[int, Item]] = field(default_factory=deque)
    flying: dict[int, Item] = field(default_factory=dict)
    due: dict[int, float] = field(default_factory=dict)
    over: bool = False


class Streamer(Subscriber):
    """A named subscription in the process that owns its slot.

    A key belongs to the stream that has its event; it may go to another one only when nothing of it is with the first.
    """

    tells = False

    def __init__(
        self,
        begin: Begin,
        filter_: Filter,
        *,
        db: Database,
        spine: Spine,
        clock: Clock,
        limits: Limits,
    ) -> None:
        super().__init__(begin, filter_, db, spine, clock)
        self._limits = limits
        self._consumers: list[Consumer] = []
        self._keys: dict[LaneKey, Consumer] = {}
        self._numbers = itertools.count(1)
        self._deadlines: list[tuple[float, int, Consumer]] = []
        self._left = self.now
        self._stopping = False

    def measure(self, carried: Carried) -> int:
        """Its bytes in a stream, about. Raises InvalidArgument for a record that is no event."""
        return len(carried.json if carried.is_json else carried.proto)

    @property
    def unused(self) -> bool:
        """Whether it has had no reader for a while."""
        return not self._consumers and self.now - self._left > LINGER

    # -- streams -----------------------------------------------------------------------------------

    def join(self, consumer: Consumer) -> None:
        """Have a stream read it."""
        self._consumers.append(consumer)
        self.work.set()

    def leave(self, consumer: Consumer) -> None:
        """What a stream hasn't answered goes to others, at once."""
        if consumer not in self._consumers:
            return
        self._consumers.remove(consumer)
        self._left = self.now
        for number in list(consumer.flying):
            item = self._landed(consumer, number)
            if item is not None:
                self.backlog.put_back(item)
        self.work.set()

    def ack(self, consumer: Consumer, numbers: list[int]) -> None:
        """These were handled."""
        for number in numbers:
            item = self._landed(consumer, number)
            if item is not None:
                self.end(item, Result(Outcome.DELIVERED))
        self.work.set()

    def finish(self, consumer: Consumer, numbers: list[int], outcome: Outcome, detail: str) -> None:
        """These are not wanted, or never will be handled."""
        for number in numbers:
            item = self._landed(consumer, number)
            if item is not None:
                self.end(item, Result(outcome, detail))
        self.work.set()

    def retry(self, consumer: Consumer, numbers: list[int], after: float, detail: str) -> None:
        """These are to come again, after some seconds."""
        now, limits, detail = self.now, self._limits, clean(detail)
        for number in numbers:
            item = self._landed(consumer, number)
            if item is None:
                continue
            if limits.is_over(item.refusals + 1, item.since, now):
                told = f"after {item.refusals + 1} tries: {detail}"
                self.end(item, Result(Outcome.REJECTED, told))
            else:
                due = now + min(after, limits.asked)
                self.backlog.retry(item, due=due, now=now, detail=detail)
        self.work.set()

    def extend(self, consumer: Consumer, numbers: list[int], seconds: float) -> None:
        """These take longer."""
        for number in numbers:
            if number in consumer.flying:
                self._set_deadline(consumer, number, self.now + seconds)

    # -- working -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Hand out events, and take back those that take too long, until stopped."""
        while not (self._stopping or self.halted):
            self.work.clear()
            now = self.now
            self.backlog.lanes.wake(now)
            self._take_back(now)
            await self.load_parked()
            self._hand_out(now)
            self.make_room()
            await loops.wait(self.work, self._pause(now))
        self._end_streams()

    async def stop(self) -> None:
        """Take back what is out, so that its place is saved as it is."""
        self._stopping = True
        self._end_streams()
        self.work.set()

    def halt(self) -> None:
        """Nothing may go out any more."""
        super().halt()
        self._end_streams()

    def _end_streams(self) -> None:
        for consumer in list(self._consumers):
            consumer.over = True
            self.leave(consumer)
            consumer.wake.set()

    def _hand_out(self, now: float) -> None:
        for consumer in self._consumers:
            events, size = consumer.room
            while events > 0 and size > 0:
                mine = self.backlog.send(
                    min(events, _BATCH),
                    min(size, _BATCH_BYTES),
                    None
                    if len(self._consumers) == 1
                    else lambda key, me=consumer: self._keys.get(key, me) is me,  # type: ignore[misc]
                )
                if not mine:
                    break
                for item in mine:
                    number = next(self._numbers)
                    consumer.ready.append((number, item))
                    consumer.flying[number] = item
                    self._keys[item.key] = consumer
                    self._set_deadline(consumer, number, now + consumer.within)
                    size -= item.size
                events -= len(mine)
                consumer.room = events, size
                consumer.wake.set()

    def _take_back(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            due, number, consumer = heapq.heappop(self._deadlines)
            if consumer.due.get(number) != due:
                continue
            item = self._landed(consumer, number)
            if item is not None:
                self.backlog.put_back(item)

    def _set_deadline(self, consumer: Consumer, number: int, due: float) -> None:
        consumer.due[number] = due
        heapq.heappush(self._deadlines, (due, number, consumer))

    def _landed(self, consumer: Consumer, number: int) -> Item | None:
        """An event that a stream has answered, or has no more; None for one that it hasn't."""
        item = consumer.flying.pop(number, None)
        consumer.due.pop(number, None)
        if item is not None:
            self._keys.pop(item.key, None)
        return item

    def _pause(self, now: float) -> float:
        dues = [self.backlog.lanes.next_due, self._deadlines[0][0] if self._deadlines else None]
        known = [due - now for due in dues if due is not None]
        return max(0.01, min([*known, _IDLE]))
