"""Which agent gets which conversation: the one who waited longest, of those connected and available with room.

A bot with room comes before any person, but for conversations that were handed off: those are for people.

An index in memory over what the tables say. It proposes; the shard's transaction decides (the agent's row is
guarded by status and capacity), and tells the outcome back. Everything here runs on the event loop and never
waits.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Protocol

from deskwire_chat.domain import Agent, Status, Waiting, partition_of

AgentKey = tuple[str, str]
"""Tenant and agent_id."""


class Assign(Protocol):
    """Proposes a conversation for an agent to the shard."""

    def __call__(self, waiting: Waiting, agent: Agent) -> None: ...


class _Slot:
    """An agent or bot as routing sees them. `pending` are proposals that the shard hasn't decided.

    People's and bots' connections are counted apart: a token's role may not be that of the agent with its subject.
    """

    __slots__ = (
        "agent",
        "changes",
        "gone_since",
        "idle_since",
        "pending",
        "people",
        "programs",
        "suspect",
    )

    def __init__(self, now: int) -> None:
        self.agent: Agent | None = None
        self.people = 0
        self.programs = 0
        self.gone_since = now
        self.pending = 0
        self.idle_since = 0
        self.changes = 0
        self.suspect = False

    @property
    def connections(self) -> int:
        """How many connections of the agent are open here."""
        return self.programs if self.agent is not None and self.agent.bot else self.people

    def has_room(self) -> bool:
        agent = self.agent
        return (
            agent is not None
            and self.connections > 0
            and not self.suspect
            and not agent.disabled
            and agent.status == Status.AVAILABLE
            and agent.active + self.pending < agent.capacity
        )


class _Desk:
    """One tenant: its people and bots with room, and who waits for them."""

    __slots__ = ("bots", "for_all", "for_people", "free", "waiting")

    def __init__(self) -> None:
        self.free: dict[str, _Slot] = {}
        self.bots: dict[str, _Slot] = {}
        self.waiting: dict[str, Waiting] = {}
        self.for_all: list[tuple[int, str]] = []
        self.for_people: list[tuple[int, str]] = []

    def put(self, waiting: Waiting) -> None:
        """Have a conversation wait, once."""
        if waiting.conversation_id not in self.waiting:
            self.waiting[waiting.conversation_id] = waiting
            heap = self.for_people if waiting.human_wanted else self.for_all
            heapq.heappush(heap, (waiting.created_at, waiting.conversation_id))

    def take_for_bot(self) -> Waiting | None:
        """Take out the one that waits longest, of those that a bot may have."""
        return self._take(self.for_all) if self._first(self.for_all) else None

    def take_for_person(self) -> Waiting | None:
        """Take out the one that waits longest."""
        heaps = [heap for heap in (self.for_all, self.for_people) if self._first(heap)]
        return self._take(min(heaps, key=lambda heap: heap[0])) if heaps else None

    def _first(self, heap: list[tuple[int, str]]) -> bool:
        """Whether one waits; those that were closed or moved while they waited are dropped."""
        wants_human = heap is self.for_people
        while heap:
            found = self.waiting.get(heap[0][1])
            if found is not None and found.human_wanted == wants_human:
                return True
            heapq.heappop(heap)
        return False

    def _take(self, heap: list[tuple[int, str]]) -> Waiting:
        return self.waiting.pop(heapq.heappop(heap)[1])


class Router:
    """Routing of all tenants."""

    def __init__(self, *, now: Callable[[], int], refresh: Callable[[AgentKey], None]) -> None:
        """`now` gives microseconds; `refresh` is asked to read an agent again and call `read_again`."""
        self._now = now
        self._refresh = refresh
        self._assign: Assign | None = None
        self._slots: dict[AgentKey, _Slot] = {}
        self._desks: dict[str, _Desk] = {}

    def start(self, agents: Iterable[Agent], assign: Assign) -> None:
        """Take over what the table says, and begin to propose through `assign`."""
        self._assign = assign
        for agent in agents:
            self._slot(agent.tenant, agent.agent_id).agent = agent
            self._slot(agent.tenant, agent.agent_id).idle_since = agent.idle_since
        for key in self._slots:
            self._judge(key)
        for tenant in list(self._desks):
            self._dispatch(tenant)

    def wait_for(self, waiting: Iterable[Waiting]) -> None:
        """Take conversations over that wait."""
        tenants: dict[str, None] = {}
        for each in waiting:
            self._desk(each.tenant).put(each)
            tenants[each.tenant] = None
        for tenant in tenants:
            self._dispatch(tenant)

    def drop(self, partitions: Collection[int]) -> None:
        """Conversations of these are routed by another process from now on."""
        for desk in self._desks.values():
            desk.waiting = {
                name: each
                for name, each in desk.waiting.items()
                if partition_of(name) not in partitions
            }

    # ------------------------------------------------------------------------------- what happened

    def opened(self, waiting: Waiting) -> None:
        """A conversation waits for an agent."""
        self._desk(waiting.tenant).put(waiting)
        self._dispatch(waiting.tenant)

    def closed(self, tenant: str, conversation_id: str, agent_id: str) -> None:
        """A conversation ended: its agent, if it had one, has room for another."""
        if agent_id:
            slot = self._slot(tenant, agent_id)
            if slot.agent is not None:
                self._count(slot, -1)
            self._changed((tenant, agent_id))
        else:
            self._desk(tenant).waiting.pop(conversation_id, None)

    def gained(self, tenant: str, conversation_id: str, agent_id: str) -> None:
        """A conversation was given to an agent by somebody else than routing."""
        self._desk(tenant).waiting.pop(conversation_id, None)
        self._count(self._slot(tenant, agent_id), +1)
        self._changed((tenant, agent_id))

    def connected(self, tenant: str, agent_id: str, bot: bool) -> None:
        """A connection of an agent, or of a bot, opened."""
        self._moved(self._slot(tenant, agent_id), bot, +1)
        self._changed((tenant, agent_id))

    def disconnected(self, tenant: str, agent_id: str, bot: bool) -> None:
        """A connection of an agent, or of a bot, closed."""
        slot = self._slot(tenant, agent_id)
        self._moved(slot, bot, -1)
        slot.gone_since = self._now()
        if not slot.people and not slot.programs and slot.agent is None:
            del self._slots[tenant, agent_id]
            return
        self._changed((tenant, agent_id))

    def said(self, agent: Agent) -> None:
        """An agent's status, capacity or name is another one now."""
        slot = self._slot(agent.tenant, agent.agent_id)
        if slot.agent is None:
            slot.agent = agent
            slot.idle_since = agent.idle_since
        elif slot.agent.version < agent.version:
            slot.agent = replace(agent, active=slot.agent.active)
        self._changed((agent.tenant, agent.agent_id))

    def assigned(self, tenant: str, agent_id: str) -> None:
        """The shard took a proposal: the conversation is the agent's."""
        slot = self._slot(tenant, agent_id)
        slot.pending -= 1
        self._count(slot, +1)

    def refused(self, tenant: str, agent_id: str, *, waits: Waiting | None, doubtful: bool) -> None:
        """The shard didn't take a proposal.

        `waits`: the conversation, if it still waits. `doubtful`: what is known of the agent was wrong; it is read
        again before it gets another proposal.
        """
        slot = self._slot(tenant, agent_id)
        slot.pending -= 1
        if doubtful:
            slot.suspect = True
        slot.changes += 1
        self._judge((tenant, agent_id))
        if waits is not None:
            self._desk(tenant).put(waits)
        if doubtful:
            self._refresh((tenant, agent_id))
        self._dispatch(tenant)

    def changes_of(self, key: AgentKey) -> int | None:
        """Return a count that tells whether the agent was quiet between two looks; None while proposals pend."""
        slot = self._slot(*key)
        return None if slot.pending else slot.changes

    def read_again(self, key: AgentKey, agent: Agent | None) -> None:
        """Take an agent's row as the truth: nothing of theirs happened while it was read."""
        slot = self._slot(*key)
        slot.agent = agent
        slot.suspect = False
        if agent is not None:
            # Another process gave them a conversation.
            slot.idle_since = max(slot.idle_since, agent.idle_since)
        self._changed(key)

    # ------------------------------------------------------------------------------------ questions

    def agent_of(self, key: AgentKey) -> Agent | None:
        """Return an agent as routing knows them."""
        slot = self._slots.get(key)
        return slot.agent if slot is not None else None

    def quiet(self) -> dict[AgentKey, int]:
        """Return `changes_of` of all agents without pending proposals."""
        return {key: slot.changes for key, slot in self._slots.items() if not slot.pending}

    def is_connected(self, tenant: str, agent_id: str) -> bool:
        """Whether a connection of the agent is open here."""
        slot = self._slots.get((tenant, agent_id))
        return slot is not None and slot.connections > 0

    def waiting_count(self) -> int:
        """How many conversations wait."""
        return sum(len(desk.waiting) for desk in self._desks.values())

    def bots_gone(self, seconds: float) -> list[AgentKey]:
        """Return the bots that have had no connection for so long."""
        since = self._now() - int(seconds * 1_000_000)
        return [
            key
            for key, slot in self._slots.items()
            if slot.agent is not None
            and slot.agent.bot
            and not slot.programs
            and slot.gone_since <= since
        ]

    # ------------------------------------------------------------------------------------- inner

    def _slot(self, tenant: str, agent_id: str) -> _Slot:
        slot = self._slots.get((tenant, agent_id))
        if slot is None:
            slot = self._slots[tenant, agent_id] = _Slot(self._now())
        return slot

    def _desk(self, tenant: str) -> _Desk:
        desk = self._desks.get(tenant)
        if desk is None:
            desk = self._desks[tenant] = _Desk()
        return desk

    def _count(self, slot: _Slot, step: int) -> None:
        slot.changes += 1
        if slot.agent is not None:
            slot.agent = replace(slot.agent, active=max(0, slot.agent.active + step))

    @staticmethod
    def _moved(slot: _Slot, bot: bool, step: int) -> None:
        if bot:
            slot.programs += step
        else:
            slot.people += step

    def _changed(self, key: AgentKey) -> None:
        self._slot(*key).changes += 1
        if self._judge(key):
            self._dispatch(key[0])

    def _judge(self, key: AgentKey) -> bool:
        """Put the agent among the free ones, or take them away."""
        tenant, agent_id = key
        slot = self._slot(tenant, agent_id)
        desk = self._desk(tenant)
        free = desk.bots if slot.agent is not None and slot.agent.bot else desk.free
        if slot.has_room():
            free[agent_id] = slot
            return True
        free.pop(agent_id, None)
        return False

    def _dispatch(self, tenant: str) -> None:
        """Propose until nobody has room, or nobody waits whom they may have."""
        desk = self._desk(tenant)
        while self._assign is not None:
            free = desk.bots
            waiting = desk.take_for_bot() if free else None
            if waiting is None:
                free = desk.free
                waiting = desk.take_for_person() if free else None
            if waiting is None:
                return
            agent_id = min(free, key=lambda one: (free[one].idle_since, one))
            slot = free[agent_id]
            slot.pending += 1
            slot.changes += 1
            slot.idle_since = self._now()
            if not slot.has_room():
                del free[agent_id]
            assert slot.agent is not None  # noqa: S101 - who has room is known
            self._assign(waiting, slot.agent)
