"""Fairness between tenants: who has much waiting waits behind themselves only, and leaves room for others.

Queues are served by deficit round robin (Shreedhar and Varghese, 1996) over tenants, and plain round robin over the
lines (connections) of each. While little waits it all goes at once, so turns would cost time and change nothing: items
then leave in the order in which they came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

ItemT = TypeVar("ItemT")

_Placed = tuple[ItemT, int]


class _Flow(Generic[ItemT]):
    """What waits of one tenant, by line; `credit` is what the tenant may still take in its turn."""

    __slots__ = ("credit", "lines", "tenant", "turns")

    def __init__(self, tenant: Hashable, credit: int) -> None:
        self.tenant = tenant
        self.credit = credit
        self.lines: dict[Hashable, deque[_Placed[ItemT]]] = {}
        self.turns: deque[Hashable] = deque()

    def add(self, item: ItemT, size: int, line: Hashable) -> None:
        waiting = self.lines.get(line)
        if waiting is None:
            waiting = self.lines[line] = deque()
            self.turns.append(line)
        waiting.append((item, size))

    def first(self) -> ItemT:
        return self.lines[self.turns[0]][0][0]

    def pop(self) -> _Placed[ItemT]:
        line = self.turns.popleft()
        waiting = self.lines[line]
        placed = waiting.popleft()
        self.credit -= placed[1]
        if waiting:
            self.turns.append(line)
        else:
            del self.lines[line]
        return placed


class FairQueue(Generic[ItemT]):
    """Items with a size, each of a tenant and a line; the order of a line is kept. False while nothing waits.

    `size` is the sum of the sizes of all that waits.
    """

    __slots__ = ("_count", "_few", "_flows", "_fresh", "_quantum", "_turns", "size")

    def __init__(self, *, few: int, quantum: int) -> None:
        """Up to a size of `few` the queue has one order for all; beyond, a tenant takes `quantum` in its turn."""
        self.size = 0
        self._count = 0
        self._few: Final = few
        self._quantum: Final = quantum
        self._fresh: deque[tuple[ItemT, int, Hashable, Hashable]] = deque()
        """What hasn't been given to a flow. Without flows: all that waits."""
        self._flows: dict[Hashable, _Flow[ItemT]] = {}
        self._turns: deque[_Flow[ItemT]] = deque()

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:
        return self._count > 0

    def put(self, item: ItemT, size: int, tenant: Hashable, line: Hashable = None) -> None:
        """Queue an item; `size` in the unit of `few` and `quantum`."""
        self._fresh.append((item, size, tenant, line))
        self._count += 1
        self.size += size

    def first(self) -> ItemT:
        """Return the item whose turn it is. Raises IndexError when nothing waits."""
        return self._next().first() if self._are_turns() else self._fresh[0][0]

    def pop(self) -> ItemT:
        """Remove and return the item whose turn it is. Raises IndexError when nothing waits."""
        return self.take(1, 1)[0]

    def take(
        self, most: int, size: int, until: Callable[[ItemT], object] = lambda _item: False
    ) -> list[ItemT]:
        """Remove and return the next items: at most so many, until their size is reached or `until` is true of one."""
        taken: list[ItemT] = []
        before = left = self.size
        while self._count and len(taken) < most and before - left < size:
            if not self._are_turns():
                item, each, _, _ = self._fresh[0]
                if until(item):
                    break
                self._fresh.popleft()
            else:
                flow = self._next()
                if until(flow.first()):
                    break
                item, each = flow.pop()
                if not flow.lines:
                    del self._flows[flow.tenant]
                    self._turns.popleft()
            left -= each
            self._count -= 1
            self.size = left
            taken.append(item)
        return taken

    def tenants(self) -> list[Hashable]:
        """Return the tenants of whom something waits."""
        return list(dict.fromkeys([*self._flows, *(tenant for _, _, tenant, _ in self._fresh)]))

    def clear(self) -> None:
        """Forget everything."""
        self._fresh.clear()
        self._flows.clear()
        self._turns.clear()
        self._count = self.size = 0

    def _are_turns(self) -> bool:
        return bool(self._flows) or self.size > self._few

    def _next(self) -> _Flow[ItemT]:
        """Return the flow whose turn it is."""
        while self._fresh:
            item, size, tenant, line = self._fresh.popleft()
            flow = self._flows.get(tenant)
            if flow is None:
                flow = self._flows[tenant] = _Flow(tenant, self._quantum)
                self._turns.append(flow)
            flow.add(item, size, line)
        flow = self._turns[0]
        while flow.credit <= 0:
            flow.credit += self._quantum
            self._turns.rotate(-1)
            flow = self._turns[0]
        return flow


class Shares:
    """Room that tenants share: one may take all of it, and those with less than an equal share still find some.

    At most twice the room is taken then.
    """

    __slots__ = ("_limit", "_of", "taken")

    def __init__(self, limit: int) -> None:
        """`limit` is the room, in the unit of what is taken."""
        self._limit = limit
        self._of: dict[Hashable, int] = {}
        self.taken = 0

    def take(self, tenant: Hashable, amount: int = 1) -> None:
        """Take some of the room, which may exceed it."""
        self.taken += amount
        self._of[tenant] = self._of.get(tenant, 0) + amount

    def give_back(self, tenant: Hashable, amount: int = 1) -> None:
        """Give back as much as was taken before."""
        self.taken -= amount
        left = self._of[tenant] - amount
        if left > 0:
            self._of[tenant] = left
        else:
            del self._of[tenant]

    def is_full(self, tenant: Hashable) -> bool:
        """Return whether a tenant finds no more room."""
        if self.taken < self._limit:
            return False
        mine = self._of.get(tenant)
        if mine is None:
            return self.taken >= 2 * self._limit
        return mine * len(self._of) >= self._limit or self.taken >= 2 * self._limit
