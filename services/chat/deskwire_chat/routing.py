"""Which agent gets which conversation: the one who waited longest, of those connected and available with room.

An index in memory over what the tables say. It proposes; the shard's transaction decides (the agent's row is
guarded by status and capacity), and tells the outcome back. Everything here runs on the event loop and never
waits.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from deskwire_chat.domain import Agent, Status, partition_of

AgentKey = tuple[str, str]
"""Tenant and agent_id."""


class Assign(Protocol):
    """Proposes a conversation for an agent to the shard."""

    def __call__(
        self, *, tenant: str, conversation_id: str, agent_id: str, agent_name: str
    ) -> None: ...


class _Slot:
    """An agent as routing sees them. `pending` are proposals that the shard hasn't decided."""

    __slots__ = ("agent", "changes", "connections", "idle_since", "pending", "suspect")

    def __init__(self) -> None:
        self.agent: Agent | None = None
        self.connections = 0
        self.pending = 0
        self.idle_since = 0
        self.changes = 0
        self.suspect = False

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
    """One tenant: its agents with room, and who waits for them."""

    __slots__ = ("free", "waiting", "waiting_ids")

    def __init__(self) -> None:
        self.free: dict[str, _Slot] = {}
        self.waiting: list[tuple[int, str]] = []
        self.waiting_ids: set[str] = set()


class Router:
    """Routing of all tenants."""

    def __init__(self, *, now: Callable[[], int], refresh: Callable[[AgentKey], None]) -> None:
        """`now` gives microseconds; `refresh` is asked to read an agent again and call `read_again`."""
        self._now = now
        self._refresh = refresh
        self._assign: Assign | None = None
        self._slots: dict[AgentKey, _Slot] = {}
        self._desks: dict[str, _Desk] = {}

    def start(
        self, agents: Iterable[Agent], waiting: Iterable[tuple[str, str, int]], assign: Assign
    ) -> None:
        """Take over what the tables say, and begin to propose through `assign`."""
        self._assign = assign
        for agent in agents:
            self._slot(agent.tenant, agent.agent_id).agent = agent
            self._slot(agent.tenant, agent.agent_id).idle_since = agent.idle_since
        for tenant, conversation_id, created_at in waiting:
            self._wait(tenant, conversation_id, created_at)
        for key in self._slots:
            self._judge(key)
        for tenant in list(self._desks):
            self._dispatch(tenant)

    def wait_for(self, waiting: Iterable[tuple[str, str, int]]) -> None:
        """Take conversations over that wait: tenant, id, created_at."""
        tenants: dict[str, None] = {}
        for tenant, conversation_id, created_at in waiting:
            self._wait(tenant, conversation_id, created_at)
            tenants[tenant] = None
        for tenant in tenants:
            self._dispatch(tenant)

    def drop(self, partitions: Collection[int]) -> None:
        """Conversations of these are routed by another process from now on."""
        for desk in self._desks.values():
            desk.waiting_ids = {
                each for each in desk.waiting_ids if partition_of(each) not in partitions
            }

    # ------------------------------------------------------------------------------- what happened

    def opened(self, tenant: str, conversation_id: str, created_at: int) -> None:
        """A conversation waits for an agent."""
        self._wait(tenant, conversation_id, created_at)
        self._dispatch(tenant)

    def closed(self, tenant: str, conversation_id: str, agent_id: str) -> None:
        """A conversation ended: its agent, if it had one, has room for another."""
        if agent_id:
            slot = self._slot(tenant, agent_id)
            if slot.agent is not None:
                self._count(slot, -1)
            self._changed((tenant, agent_id))
        else:
            self._desk(tenant).waiting_ids.discard(conversation_id)

    def gained(self, tenant: str, conversation_id: str, agent_id: str) -> None:
        """A conversation was given to an agent by somebody else than routing."""
        self._desk(tenant).waiting_ids.discard(conversation_id)
        self._count(self._slot(tenant, agent_id), +1)
        self._changed((tenant, agent_id))

    def connected(self, tenant: str, agent_id: str) -> None:
        """A connection of an agent opened."""
        self._slot(tenant, agent_id).connections += 1
        self._changed((tenant, agent_id))

    def disconnected(self, tenant: str, agent_id: str) -> None:
        """A connection of an agent closed."""
        slot = self._slot(tenant, agent_id)
        slot.connections -= 1
        if slot.connections == 0 and slot.agent is None:
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
            slot.agent = _with_active(agent, slot.agent.active)
        self._changed((agent.tenant, agent.agent_id))

    def assigned(self, tenant: str, agent_id: str) -> None:
        """The shard took a proposal: the conversation is the agent's."""
        slot = self._slot(tenant, agent_id)
        slot.pending -= 1
        self._count(slot, +1)

    def refused(
        self,
        tenant: str,
        conversation_id: str,
        agent_id: str,
        *,
        waits: int | None,
        doubtful: bool,
    ) -> None:
        """The shard didn't take a proposal.

        `waits` is created_at of a conversation that still waits. `doubtful`: what is known of the agent was wrong; it
        is read again before it gets another proposal.
        """
        slot = self._slot(tenant, agent_id)
        slot.pending -= 1
        if doubtful:
            slot.suspect = True
        slot.changes += 1
        self._judge((tenant, agent_id))
        if waits is not None:
            self._wait(tenant, conversation_id, waits)
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
        return sum(len(desk.waiting_ids) for desk in self._desks.values())

    # ------------------------------------------------------------------------------------- inner

    def _slot(self, tenant: str, agent_id: str) -> _Slot:
        slot = self._slots.get((tenant, agent_id))
        if slot is None:
            slot = self._slots[tenant, agent_id] = _Slot()
        return slot

    def _desk(self, tenant: str) -> _Desk:
        desk = self._desks.get(tenant)
        if desk is None:
            desk = self._desks[tenant] = _Desk()
        return desk

    def _count(self, slot: _Slot, step: int) -> None:
        slot.changes += 1
        if slot.agent is not None:
            slot.agent = _with_active(slot.agent, max(0, slot.agent.active + step))

    def _wait(self, tenant: str, conversation_id: str, created_at: int) -> None:
        desk = self._desk(tenant)
        if conversation_id not in desk.waiting_ids:
            desk.waiting_ids.add(conversation_id)
            heapq.heappush(desk.waiting, (created_at, conversation_id))

    def _changed(self, key: AgentKey) -> None:
        self._slot(*key).changes += 1
        if self._judge(key):
            self._dispatch(key[0])

    def _judge(self, key: AgentKey) -> bool:
        """Put the agent among the free ones, or take them away."""
        tenant, agent_id = key
        slot = self._slot(tenant, agent_id)
        free = self._desk(tenant).free
        if slot.has_room():
            free[agent_id] = slot
            return True
        free.pop(agent_id, None)
        return False

    def _dispatch(self, tenant: str) -> None:
        desk = self._desk(tenant)
        while self._assign is not None and desk.waiting and desk.free:
            _, conversation_id = heapq.heappop(desk.waiting)
            if conversation_id not in desk.waiting_ids:
                continue  # closed while it waited
            desk.waiting_ids.discard(conversation_id)
            agent_id = min(desk.free, key=lambda one: (desk.free[one].idle_since, one))
            slot = desk.free[agent_id]
            slot.pending += 1
            slot.changes += 1
            slot.idle_since = self._now()
            if not slot.has_room():
                del desk.free[agent_id]
            name = slot.agent.display_name if slot.agent is not None else ""
            self._assign(
                tenant=tenant,
                conversation_id=conversation_id,
                agent_id=agent_id,
                agent_name=name or agent_id,
            )


def _with_active(agent: Agent, active: int) -> Agent:
    return Agent(
        tenant=agent.tenant,
        agent_id=agent.agent_id,
        display_name=agent.display_name,
        status=agent.status,
        capacity=agent.capacity,
        active=active,
        idle_since=agent.idle_since,
        version=agent.version,
        disabled=agent.disabled,
    )
