"""Open offers, and who gets none for a while. Their effect on queues and agents is the router's task."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from deskwire_chat.domain.agents import OfferEnd
from deskwire_chat.domain.conversations import partition_of
from deskwire_chat.domain.work import WorkItem

AgentKey = tuple[str, str]
"""Tenant and agent_id."""

_PAUSE_OFFERS: Final = 3
"""For how long a refusal counts, as a multiple of the time that an offer stands."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A work item that an agent may accept until `expires_at`, in microseconds."""

    item: WorkItem
    agent_id: str
    expires_at: int

    @property
    def agent(self) -> AgentKey:
        """The agent to whom the item is offered."""
        return self.item.tenant, self.agent_id


class OfferListener(Protocol):
    """Is called at every offer and at its end."""

    def offered(self, offer: Offer) -> None:
        """React to an offer that was made."""
        ...

    def offer_ended(self, offer: Offer, end: OfferEnd) -> None:
        """React to the end of an offer: the agent took it, or can't take it any more."""
        ...


class Offers:
    """Open offers by work item, claimed offers that aren't decided, and pauses after refusals."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: how long an offer stands; 0: there are no offers, proposed items are the agents' at once."""
        self._micros = int(seconds * 1_000_000)
        self._open: dict[str, Offer] = {}
        self._claimed: dict[str, Offer] = {}
        self._silent: dict[AgentKey, int] = {}
        self._refusals: dict[tuple[str, str], dict[str, int]] = {}

    def __len__(self) -> int:
        """Return how many offers are open."""
        return len(self._open)

    def __contains__(self, item_id: str) -> bool:
        """Whether a work item is offered to somebody."""
        return item_id in self._open

    @property
    def are_made(self) -> bool:
        """Whether work items are offered to people at all."""
        return self._micros > 0

    def make(self, item: WorkItem, agent_id: str, now: int) -> Offer:
        """Offer a work item."""
        offer = self._open[item.id] = Offer(item, agent_id, now + self._micros)
        return offer

    def of_item(self, item_id: str) -> Offer | None:
        """Return the open offer of a work item."""
        return self._open.get(item_id)

    def of_agent(self, key: AgentKey) -> list[Offer]:
        """Return the open offers to an agent."""
        return [each for each in self._open.values() if each.agent == key]

    def of_partitions(self, numbers: Collection[int]) -> list[Offer]:
        """Return the open offers of the items of some partitions."""
        return [each for each in self._open.values() if partition_of(each.item.id) in numbers]

    def over(self, now: int) -> list[Offer]:
        """Return the open offers that have expired."""
        return [each for each in self._open.values() if each.expires_at <= now]

    def close(self, offer: Offer, *, claimed: bool = False) -> None:
        """Close an offer; a `claimed` offer then waits to be settled."""
        del self._open[offer.item.id]
        if claimed:
            self._claimed[offer.item.id] = offer

    def settle(self, item_id: str) -> Offer | None:
        """Return the claimed offer of a work item, which is now decided, and forget it."""
        return self._claimed.pop(item_id, None)

    # -------------------------------------------------------------------------------------- pauses

    def refuse(self, offer: Offer, end: OfferEnd, now: int) -> None:
        """Note that an agent declined an offer or let it pass: this item isn't offered to them for a while.

        An agent who let it pass is silent: they are offered nothing for that while, or until they show a sign of life.
        """
        until = now + _PAUSE_OFFERS * self._micros
        self._refusals.setdefault((offer.item.tenant, offer.item.id), {})[offer.agent_id] = until
        if end == OfferEnd.EXPIRED:
            self._silent[offer.agent] = until

    def refused_by(self, item: WorkItem) -> Mapping[str, int]:
        """Return the agents to whom an item isn't to be offered yet, and until when."""
        return self._refusals.get((item.tenant, item.id), {})

    def ends_silence(self, key: AgentKey) -> bool:
        """Note a sign of life; whether the agent was silent."""
        return self._silent.pop(key, None) is not None

    def silent_until(self, now: int) -> Iterable[AgentKey]:
        """Return the agents whose silence is over."""
        return [key for key, until in self._silent.items() if until <= now]

    def forget_refusals(self, now: int) -> dict[str, None]:
        """Forget refusals that don't count any more; return the tenants that had some, in order."""
        tenants: dict[str, None] = {}
        for place, refusals in list(self._refusals.items()):
            left = {agent_id: until for agent_id, until in refusals.items() if until > now}
            if len(left) < len(refusals):
                tenants[place[0]] = None
            if left:
                self._refusals[place] = left
            else:
                del self._refusals[place]
        return tenants
