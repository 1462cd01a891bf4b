"""Which agent gets which conversation: the one who waited longest, of those connected and available with room.

A bot with room comes before any person, but for conversations that were handed off: those are for people.

With offers on, people are asked first: a conversation is offered to one after the other until somebody accepts. Who
declines one, or lets it pass, isn't offered it again for a while. Who lets one pass is offered nothing until they say
something, or for that while.

An index in memory over what the tables say. It proposes; the shard's transaction decides (the agent's row is
guarded by status and capacity), and tells the outcome back. Everything here runs on the event loop and never
waits.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from deskwire_chat.domain.agents import Agent, OfferEnd, Status
from deskwire_chat.domain.conversations import Waiting, partition_of

AgentKey = tuple[str, str]
"""Tenant and agent_id."""


_PAUSE_OFFERS: Final = 3
"""The while for which a refusal counts, in times of an offer."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A conversation that an agent may accept until `expires_at`, in microseconds."""

    waiting: Waiting
    agent_id: str
    expires_at: int

    @property
    def agent(self) -> AgentKey:
        """Whose it is."""
        return self.waiting.tenant, self.agent_id


class Assign(Protocol):
    """Proposes a conversation for an agent to the shard."""

    def __call__(self, waiting: Waiting, agent: Agent) -> None: ...


class _Slot:
    """An agent or bot as routing sees them. `pending` are proposals that the shard hasn't decided.

    `offered` are open offers, and a `silent` one has let an offer pass.

    People's and bots' connections are counted apart: a token's role may not be that of the agent with its subject.
    """

    __slots__ = (
        "agent",
        "changes",
        "gone_since",
        "idle_since",
        "offered",
        "pending",
        "people",
        "programs",
        "silent",
        "suspect",
    )

    def __init__(self, now: int) -> None:
        self.agent: Agent | None = None
        self.people = 0
        self.programs = 0
        self.gone_since = now
        self.pending = 0
        self.offered = 0
        self.silent = False
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
            and not self.silent
            and not agent.disabled
            and agent.status == Status.AVAILABLE
            and agent.active + self.pending + self.offered < agent.capacity
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

    def __init__(
        self,
        *,
        now: Callable[[], int],
        refresh: Callable[[AgentKey], None],
        offer_seconds: float = 0.0,
    ) -> None:
        """`now` gives microseconds; `refresh` is asked to read an agent again and call `read_again`.

        `offer_seconds`: how long people are offered a conversation; 0: it is theirs at once.
        """
        self._now = now
        self._refresh = refresh
        self._assign: Assign | None = None
        self._slots: dict[AgentKey, _Slot] = {}
        self._desks: dict[str, _Desk] = {}
        self._offer_micros = int(offer_seconds * 1_000_000)
        self._offers: dict[str, Offer] = {}
        self._claimed: dict[str, Offer] = {}
        self._silent: dict[AgentKey, int] = {}
        self._refusals: dict[tuple[str, str], dict[str, int]] = {}
        self.offered: Callable[[Offer], None] = lambda _offer: None
        """Told of every offer, and `offer_ended` of its end."""
        self.offer_ended: Callable[[Offer, OfferEnd], None] = lambda _offer, _end: None

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
            self._wait(each)
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
        for conversation_id in [each for each in self._offers if partition_of(each) in partitions]:
            self._withdraw(conversation_id)

    # ------------------------------------------------------------------------------- what happened

    def opened(self, waiting: Waiting) -> None:
        """A conversation waits for an agent."""
        self._wait(waiting)
        self._dispatch(waiting.tenant)

    def closed(self, tenant: str, conversation_id: str, agent_id: str) -> None:
        """A conversation ended: its agent, if it had one, has room for another."""
        if agent_id:
            slot = self._slot(tenant, agent_id)
            if slot.agent is not None:
                self._count(slot, -1)
            self._changed((tenant, agent_id))
        else:
            self.leaves_queue(tenant, conversation_id)

    def gained(self, tenant: str, conversation_id: str, agent_id: str) -> None:
        """A conversation was given to an agent by somebody else than routing."""
        self.leaves_queue(tenant, conversation_id)
        self._count(self._slot(tenant, agent_id), +1)
        self._changed((tenant, agent_id))

    def leaves_queue(self, tenant: str, conversation_id: str) -> None:
        """A conversation doesn't wait here: not any more, or it turns out not to."""
        self._desk(tenant).waiting.pop(conversation_id, None)
        self._withdraw(conversation_id)

    def connected(self, tenant: str, agent_id: str, bot: bool) -> None:
        """A connection of an agent, or of a bot, opened."""
        self._moved(self._slot(tenant, agent_id), bot, +1)
        self.spoke(tenant, agent_id)
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
        self._reconsider((agent.tenant, agent.agent_id))
        self._changed((agent.tenant, agent.agent_id))

    def spoke(self, tenant: str, agent_id: str) -> None:
        """An agent is there: who let an offer pass gets others again."""
        if self._silent.pop((tenant, agent_id), None) is not None:
            self._slot(tenant, agent_id).silent = False
            self._changed((tenant, agent_id))

    def assigned(self, tenant: str, conversation_id: str, agent_id: str) -> None:
        """The shard took a proposal: the conversation is the agent's."""
        self._settle(conversation_id, OfferEnd.ACCEPTED)
        slot = self._slot(tenant, agent_id)
        slot.pending -= 1
        self._count(slot, +1)

    def refused(
        self,
        tenant: str,
        conversation_id: str,
        agent_id: str,
        *,
        waits: Waiting | None,
        doubtful: bool,
    ) -> None:
        """The shard didn't take a proposal.

        `waits`: the conversation, if it still waits. `doubtful`: what is known of the agent was wrong; it is read
        again before it gets another proposal.
        """
        self._settle(conversation_id, OfferEnd.WITHDRAWN)
        slot = self._slot(tenant, agent_id)
        slot.pending -= 1
        if doubtful:
            slot.suspect = True
        slot.changes += 1
        self._judge((tenant, agent_id))
        if waits is not None:
            self._wait(waits)
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
        self._reconsider(key)
        self._changed(key)

    # -------------------------------------------------------------------------------------- offers

    def offer_of(self, tenant: str, conversation_id: str, agent_id: str) -> Offer | None:
        """Return the open offer of a conversation to an agent."""
        offer = self._offers.get(conversation_id)
        if offer is None or offer.agent != (tenant, agent_id) or offer.expires_at <= self._now():
            return None
        return offer

    def claim(self, tenant: str, conversation_id: str, agent_id: str) -> Offer | None:
        """An agent accepts: their offer is a proposal now, which the shard takes or refuses. None: it is over."""
        offer = self.offer_of(tenant, conversation_id, agent_id)
        if offer is not None:
            self._slot(tenant, agent_id).pending += 1
            self._take_back(offer)
            self._claimed[conversation_id] = offer
            self.spoke(tenant, agent_id)
        return offer

    def decline(self, tenant: str, conversation_id: str, agent_id: str) -> None:
        """An agent declines: somebody else is asked."""
        offer = self.offer_of(tenant, conversation_id, agent_id)
        if offer is not None:
            self.spoke(tenant, agent_id)
            self._end(offer, OfferEnd.DECLINED)

    def expire(self) -> None:
        """End the offers and pauses whose time is over; to be called again and again."""
        now = self._now()
        for offer in [each for each in self._offers.values() if each.expires_at <= now]:
            self._end(offer, OfferEnd.EXPIRED)
        for key in [key for key, until in self._silent.items() if until <= now]:
            self.spoke(*key)
        again: dict[str, None] = {}
        for place, refusals in list(self._refusals.items()):
            left = {agent_id: until for agent_id, until in refusals.items() if until > now}
            if len(left) < len(refusals):
                again[place[0]] = None
            if left:
                self._refusals[place] = left
            else:
                del self._refusals[place]
        for tenant in again:
            self._dispatch(tenant)

    def _end(self, offer: Offer, end: OfferEnd) -> None:
        """An offer is over without a taker: the conversation waits again."""
        tenant, agent_id = offer.agent
        self._take_back(offer)
        until = self._now() + _PAUSE_OFFERS * self._offer_micros
        if end in {OfferEnd.EXPIRED, OfferEnd.DECLINED}:
            place = tenant, offer.waiting.conversation_id
            self._refusals.setdefault(place, {})[agent_id] = until
        if end == OfferEnd.EXPIRED:
            self._silent[tenant, agent_id] = until
            self._slot(tenant, agent_id).silent = True
        self.offer_ended(offer, end)
        self._judge(offer.agent)
        self._wait(offer.waiting)
        self._dispatch(tenant)

    def _withdraw(self, conversation_id: str) -> None:
        """The conversation isn't routing's to offer any more."""
        offer = self._offers.get(conversation_id)
        if offer is not None:
            self._take_back(offer)
            self.offer_ended(offer, OfferEnd.WITHDRAWN)
            self._changed(offer.agent)

    def _reconsider(self, key: AgentKey) -> None:
        """What is offered to somebody who takes nothing any more is others'."""
        agent = self._slot(*key).agent
        if agent is None or agent.disabled or agent.status != Status.AVAILABLE:
            for offer in [each for each in self._offers.values() if each.agent == key]:
                self._end(offer, OfferEnd.WITHDRAWN)

    def _settle(self, conversation_id: str, end: OfferEnd) -> None:
        offer = self._claimed.pop(conversation_id, None)
        if offer is not None:
            self.offer_ended(offer, end)

    def _take_back(self, offer: Offer) -> None:
        del self._offers[offer.waiting.conversation_id]
        slot = self._slot(*offer.agent)
        slot.offered -= 1
        slot.changes += 1

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
        return len(self._offers) + sum(len(desk.waiting) for desk in self._desks.values())

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

    def _wait(self, waiting: Waiting) -> None:
        if waiting.conversation_id not in self._offers:
            self._desk(waiting.tenant).put(waiting)

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
        refused: list[Waiting] = []
        while self._assign is not None:
            free = desk.bots
            waiting = desk.take_for_bot() if free else None
            if waiting is None:
                free = desk.free
                waiting = desk.take_for_person() if free else None
            if waiting is None:
                break
            unwilling = self._refusals.get((tenant, waiting.conversation_id), ())
            able = [each for each in free if each not in unwilling]
            if able:
                self._give(waiting, free, min(able, key=lambda one: (free[one].idle_since, one)))
            else:
                refused.append(waiting)
        for each in refused:
            desk.put(each)

    def _give(self, waiting: Waiting, free: dict[str, _Slot], agent_id: str) -> None:
        """Propose a conversation for somebody, or offer it to them."""
        slot = free[agent_id]
        agent = slot.agent
        assert agent is not None  # noqa: S101 - who has room is known
        asked = self._offer_micros > 0 and not agent.bot
        if asked:
            slot.offered += 1
        else:
            slot.pending += 1
        slot.changes += 1
        slot.idle_since = self._now()
        if not slot.has_room():
            del free[agent_id]
        if asked:
            offer = Offer(waiting, agent_id, slot.idle_since + self._offer_micros)
            self._offers[waiting.conversation_id] = offer
            self.offered(offer)
        elif self._assign is not None:
            self._assign(waiting, agent)
