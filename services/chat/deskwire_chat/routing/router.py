"""Routing: which work items wait, which agents are free, and which item is proposed or offered to which agent.

With offers on, a work item is offered to one person after the other until somebody accepts. Nobody is offered an item
again for a while after they declined it or let it pass. After letting one pass they are offered nothing at all for that
while, or until they show a sign of life.

Routing is an index in memory over the tables. It proposes; the log's transaction decides (the agent's row is guarded by
status and capacity) and reports the outcome. Everything here runs on the event loop and never waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

from deskwire_chat.domain.agents import Agent, OfferEnd
from deskwire_chat.domain.work import WorkItem
from deskwire_chat.routing import policy
from deskwire_chat.routing.capacity import Capacity, takes_work
from deskwire_chat.routing.index import AgentIndex
from deskwire_chat.routing.offers import AgentKey, Offer, OfferListener, Offers
from deskwire_chat.routing.queue import WorkQueue
from deskwire_common.logging import get_logger

Proposer = Callable[[WorkItem, Agent], None]
"""Proposes a work item for an agent to the log, which answers with `proposal_taken` or `proposal_refused`."""


class _Desk:
    """One tenant: its people and bots with room, and the work items that wait for them."""

    __slots__ = ("bots", "people", "queue")

    def __init__(self) -> None:
        self.bots: dict[str, Capacity] = {}
        self.people: dict[str, Capacity] = {}
        self.queue = WorkQueue()

    def judge(self, known: Capacity) -> bool:
        """Add an agent to the free ones, or remove them; whether they are free."""
        free = self.bots if known.is_bot else self.people
        if known.room > 0:
            free[known.agent_id] = known
            return True
        free.pop(known.agent_id, None)
        return False


class Router:
    """Routing of all tenants."""

    def __init__(
        self, listener: OfferListener, *, now: Callable[[], int], offer_seconds: float = 0.0
    ) -> None:
        """`listener` is called at every offer and at its end; `now` gives microseconds.

        `offer_seconds`: how long an offer stands, 0: people get an item without one.
        """
        self._listener = listener
        self._now = now
        self._propose: Proposer | None = None
        self.agents = AgentIndex(now)
        self._desks: dict[str, _Desk] = {}
        self._offers = Offers(offer_seconds)
        self.doubted: asyncio.Queue[AgentKey] = asyncio.Queue()
        """Agents whose state here was wrong: their rows are to be read and given to `agents_read`."""

    def start(self, agents: Iterable[Agent], propose: Proposer) -> None:
        """Take the agents of the table, and begin to propose."""
        self._propose = propose
        for agent in agents:
            known = self.agents.known(agent.tenant, agent.agent_id)
            known.agent = agent
            known.idle_since = agent.idle_since
        for key in self.agents:
            self._judge(key)
        for tenant in list(self._desks):
            self._dispatch(tenant)

    # ---------------------------------------------------------------------------- what happens to work

    def enqueue(self, *items: WorkItem) -> None:
        """Have work items wait for agents."""
        tenants: dict[str, None] = {}
        for item in items:
            self._wait(item)
            tenants[item.tenant] = None
        for tenant in tenants:
            self._dispatch(tenant)

    def dequeue(self, tenant: str, item_id: str) -> None:
        """Remove a work item that doesn't wait here, or not any more."""
        self._desk(tenant).queue.remove(item_id)
        self._withdraw(item_id)

    def drop_partitions(self, numbers: Collection[int]) -> None:
        """Remove the items of partitions that another process routes from now on."""
        for desk in self._desks.values():
            desk.queue.remove_partitions(numbers)
        for offer in self._offers.of_partitions(numbers):
            self._withdraw(offer.item.id)

    def work_ended(self, tenant: str, item_id: str, agent_id: str) -> None:
        """Note that a work item is done or went elsewhere: its agent, if any, has room for the next."""
        if not agent_id:
            self.dequeue(tenant, item_id)
            return
        known = self.agents.known(tenant, agent_id)
        if known.agent is not None:
            known.count_active(-1)
        self._changed((tenant, agent_id))

    def work_given(self, tenant: str, item_id: str, agent_id: str) -> None:
        """Note that an agent got a work item other than through routing."""
        self.dequeue(tenant, item_id)
        self.agents.known(tenant, agent_id).count_active(+1)
        self._changed((tenant, agent_id))

    def proposal_taken(self, tenant: str, item_id: str, agent_id: str) -> None:
        """Note that the log took a proposal: the agent has the work item."""
        self._settle(item_id, OfferEnd.ACCEPTED)
        known = self.agents.known(tenant, agent_id)
        known.pending -= 1
        known.count_active(+1)

    def proposal_refused(
        self, tenant: str, item_id: str, agent_id: str, *, waits: WorkItem | None, doubtful: bool
    ) -> None:
        """Note that the log refused a proposal.

        `waits`: the item, if it still waits. `doubtful`: the agent's state here was wrong; their row is read before the
        next proposal for them.
        """
        key = tenant, agent_id
        self._settle(item_id, OfferEnd.WITHDRAWN)
        known = self.agents.known(*key)
        known.pending -= 1
        known.changes += 1
        self._judge(key)
        if waits is not None:
            self._wait(waits)
        if doubtful:
            self.doubt(key)
        self._dispatch(tenant)

    def may_give(self, item: WorkItem, agent_id: str) -> bool:
        """Whether routing may give an item to an agent now."""
        known = self.agents.known(item.tenant, agent_id)
        refused_by = self._offers.refused_by(item)
        return policy.obstacle(item, known, refused_by=refused_by) is None

    # -------------------------------------------------------------------------- what happens to agents

    def agent_connected(self, tenant: str, agent_id: str, bot: bool) -> None:
        """Note that a connection of an agent, or of a bot, opened."""
        self.agents.known(tenant, agent_id).count_connection(+1, bot=bot)
        self.agent_active(tenant, agent_id)
        self._changed((tenant, agent_id))

    def agent_disconnected(self, tenant: str, agent_id: str, bot: bool) -> None:
        """Note that a connection of an agent, or of a bot, closed."""
        known = self.agents.known(tenant, agent_id)
        known.count_connection(-1, bot=bot)
        known.gone_since = self._now()
        if not known.people and not known.bots and known.agent is None:
            self.agents.forget((tenant, agent_id))
            return
        self._changed((tenant, agent_id))

    def agent_active(self, tenant: str, agent_id: str) -> None:
        """Note an agent's sign of life: if they let an offer pass, they get offers again."""
        if self._offers.ends_silence((tenant, agent_id)):
            self.agents.known(tenant, agent_id).silent = False
            self._changed((tenant, agent_id))

    def agent_changed(self, agent: Agent) -> None:
        """Take an agent's new status, capacity or name."""
        key = agent.tenant, agent.agent_id
        known = self.agents.known(*key)
        if known.agent is None:
            known.agent = agent
            known.idle_since = agent.idle_since
        elif known.agent.version < agent.version:
            known.agent = replace(agent, active=known.agent.active)
        self._reconsider(key)
        self._changed(key)

    def doubt(self, key: AgentKey) -> None:
        """Have an agent's row read before they get anything more, as their state here may be wrong."""
        if self.agents.get(key) is not None:
            self.agents.known(*key).doubted = True
            self._changed(key)
            self.doubted.put_nowait(key)

    def agents_read(self, found: Iterable[tuple[AgentKey, Agent | None]]) -> None:
        """Take agents' rows as the truth, as nothing happened to them while they were read.

        Nothing is given before all are taken: whoever comes last may be the one to get it.
        """
        keys: list[AgentKey] = []
        for key, agent in found:
            self.agents.known(*key).take_row(agent)
            self._judge(key)
            keys.append(key)
        for key in keys:
            self._reconsider(key)
        for tenant in dict.fromkeys(tenant for tenant, _ in keys):
            self._dispatch(tenant)

    # -------------------------------------------------------------------------------------- offers

    def open_offer(self, tenant: str, item_id: str, agent_id: str) -> Offer | None:
        """Return the open offer of a work item to an agent."""
        offer = self._offers.of_item(item_id)
        if offer is None or offer.agent != (tenant, agent_id) or offer.expires_at <= self._now():
            return None
        return offer

    def claim_offer(self, tenant: str, item_id: str, agent_id: str) -> Offer | None:
        """Turn an agent's open offer into a proposal, which the log takes or refuses. None: the offer is over."""
        offer = self.open_offer(tenant, item_id, agent_id)
        if offer is not None:
            self.agents.known(tenant, agent_id).pending += 1
            self._take_back(offer, claimed=True)
            self.agent_active(tenant, agent_id)
        return offer

    def decline_offer(self, tenant: str, item_id: str, agent_id: str) -> None:
        """End an offer that an agent declines; the item is offered to somebody else."""
        offer = self.open_offer(tenant, item_id, agent_id)
        if offer is not None:
            self.agent_active(tenant, agent_id)
            self._end(offer, OfferEnd.DECLINED)

    def expire_offers(self) -> None:
        """End the offers and pauses that have expired; to be called periodically."""
        now = self._now()
        for offer in self._offers.over(now):
            self._end(offer, OfferEnd.EXPIRED)
        for key in self._offers.silent_until(now):
            self.agent_active(*key)
        for tenant in self._offers.forget_refusals(now):
            self._dispatch(tenant)

    def _end(self, offer: Offer, end: OfferEnd) -> None:
        """End an offer that nobody took: the item waits again."""
        self._take_back(offer)
        if end in {OfferEnd.EXPIRED, OfferEnd.DECLINED}:
            self._offers.refuse(offer, end, self._now())
        if end == OfferEnd.EXPIRED:
            self.agents.known(*offer.agent).silent = True
        self._listener.offer_ended(offer, end)
        self._judge(offer.agent)
        self._wait(offer.item)
        self._dispatch(offer.item.tenant)

    def _withdraw(self, item_id: str) -> None:
        """Withdraw the offer of an item that routing may not offer any more."""
        offer = self._offers.of_item(item_id)
        if offer is not None:
            self._take_back(offer)
            self._listener.offer_ended(offer, OfferEnd.WITHDRAWN)
            self._changed(offer.agent)

    def _reconsider(self, key: AgentKey) -> None:
        """Offer the items of an agent who takes nothing any more to others."""
        if not takes_work(self.agents.known(*key).agent):
            for offer in self._offers.of_agent(key):
                self._end(offer, OfferEnd.WITHDRAWN)

    def _settle(self, item_id: str, end: OfferEnd) -> None:
        offer = self._offers.settle(item_id)
        if offer is not None:
            self._listener.offer_ended(offer, end)

    def _take_back(self, offer: Offer, *, claimed: bool = False) -> None:
        self._offers.close(offer, claimed=claimed)
        known = self.agents.known(*offer.agent)
        known.offered -= 1
        known.changes += 1

    def waiting_count(self) -> int:
        """Return how many work items wait."""
        return len(self._offers) + sum(len(desk.queue) for desk in self._desks.values())

    # ------------------------------------------------------------------------------------- inner

    def _desk(self, tenant: str) -> _Desk:
        desk = self._desks.get(tenant)
        if desk is None:
            desk = self._desks[tenant] = _Desk()
        return desk

    def _wait(self, item: WorkItem) -> None:
        if item.id not in self._offers:
            self._desk(item.tenant).queue.put(item)

    def _changed(self, key: AgentKey) -> None:
        self.agents.known(*key).changes += 1
        if self._judge(key):
            self._dispatch(key[0])

    def _judge(self, key: AgentKey) -> bool:
        """Add an agent to the free ones, or remove them; whether they are free."""
        return self._desk(key[0]).judge(self.agents.known(*key))

    def _dispatch(self, tenant: str) -> None:
        """Propose items until nobody has room, or nothing waits that they may have."""
        desk = self._desk(tenant)
        unwanted: list[WorkItem] = []
        while self._propose is not None and (desk.bots or desk.people):
            item = desk.queue.take(for_people=bool(desk.people))
            if item is None:
                break
            choice = policy.choose(
                item, _free(desk, item), refused_by=self._offers.refused_by(item)
            )
            get_logger().debug(
                "work_routed",
                item=item.id,
                agent_id=choice.agent_id,
                reason=choice.reason,
                obstacles=choice.obstacles,
            )
            if choice.agent_id is None:
                unwanted.append(item)
            else:
                self._give(item, self.agents.known(tenant, choice.agent_id))
        for item in unwanted:
            desk.queue.put(item)

    def _give(self, item: WorkItem, known: Capacity) -> None:
        """Propose an item for an agent, or offer it to them."""
        agent = known.agent
        assert agent is not None  # noqa: S101 - an agent with room is known
        asked = self._offers.are_made and not agent.bot
        if asked:
            known.offered += 1
        else:
            known.pending += 1
        known.changes += 1
        known.idle_since = self._now()
        self._judge((agent.tenant, agent.agent_id))
        if asked:
            offer = self._offers.make(item, agent.agent_id, known.idle_since)
            self._listener.offered(offer)
        elif self._propose is not None:
            self._propose(item, agent)


def _free(desk: _Desk, item: WorkItem) -> Iterator[Capacity]:
    """Yield the agents with room who might get an item; people only where no bot comes before them."""
    if desk.bots and not item.human_wanted:
        yield from desk.bots.values()
    yield from desk.people.values()
