"""Who gets a work item: a pure rule, which gives its reason.

An agent may have an item if they have room, have the skills that it needs, and haven't refused it of late. Of those:

1. Who has another open conversation of the same customer comes first, bot or person: they know what it is about, and
   one customer doesn't take the places of two agents.
2. A bot comes before any person, unless a person is wanted.
3. Who has been idle longest.

An agent who has the customer and has no room, isn't connected or is away doesn't hold the item up: another one gets it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from deskwire_chat.domain.work import WorkItem


class Reason(StrEnum):
    """Why an agent gets a work item, or doesn't."""

    IDLE_LONGEST = "idle_longest"
    """No other agent who may have it has been idle longer."""
    HAS_CUSTOMER = "has_customer"
    """The agent has another open conversation of the same customer."""
    BOT_FIRST = "bot_first"
    """A bot may have it; this bot has been idle longest."""
    NO_ROOM = "no_room"
    """The agent has as many items as they take, or takes none now."""
    HUMAN_WANTED = "human_wanted"
    """The item was handed off to people: bots don't get it."""
    LACKS_SKILL = "lacks_skill"
    """The item needs a skill that the agent doesn't have."""
    REFUSED_IT = "refused_it"
    """The agent declined it, or let its offer pass, a short while ago."""
    NOBODY = "nobody"
    """No agent may have it now."""


class Candidate(Protocol):
    """An agent who might get a work item."""

    @property
    def agent_id(self) -> str:
        """The agent's id; unique in the tenant."""
        ...

    @property
    def is_bot(self) -> bool:
        """Whether the agent is a program."""
        ...

    @property
    def room(self) -> int:
        """How many more items the agent takes now."""
        ...

    @property
    def idle_since(self) -> int:
        """When the agent last got an item, in microseconds; 0: never."""
        ...

    @property
    def skills(self) -> frozenset[str]:
        """The agent's skills."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """Who gets a work item, and why; `agent_id` is None when nobody gets it.

    `obstacles`: why others may not have it, for the agents who were checked; for all agents when nobody gets it.
    Agents who were merely idle for a shorter time aren't in it.
    """

    agent_id: str | None
    reason: Reason
    obstacles: Mapping[str, Reason]


def choose(
    item: WorkItem, candidates: Iterable[Candidate], *, refused_by: Collection[str] = ()
) -> Choice:
    """Return which of a tenant's agents gets `item`. `refused_by`: the agents to whom it isn't offered again yet."""
    best: Candidate | None = None
    obstacles: dict[str, Reason] = {}
    for candidate in candidates:
        # Compare ranks first, as that costs less: only an agent ahead of the best so far is checked.
        if best is not None and _rank(item, candidate) > _rank(item, best):
            continue
        reason = obstacle(item, candidate, refused_by=refused_by)
        if reason is None:
            best = candidate
        else:
            obstacles[candidate.agent_id] = reason
    if best is None:
        return Choice(None, Reason.NOBODY, obstacles)
    reason = Reason.BOT_FIRST if best.is_bot else Reason.IDLE_LONGEST
    if best.agent_id in item.known_to:
        reason = Reason.HAS_CUSTOMER
    return Choice(best.agent_id, reason, obstacles)


def obstacle(
    item: WorkItem, candidate: Candidate, *, refused_by: Collection[str] = ()
) -> Reason | None:
    """Return why `candidate` may not have `item`; None: they may."""
    if candidate.room <= 0:
        return Reason.NO_ROOM
    if item.human_wanted and candidate.is_bot:
        return Reason.HUMAN_WANTED
    if not item.skills <= candidate.skills:
        return Reason.LACKS_SKILL
    if candidate.agent_id in refused_by:
        return Reason.REFUSED_IT
    return None


def _rank(item: WorkItem, candidate: Candidate) -> tuple[bool, bool, int, str]:
    return (
        candidate.agent_id not in item.known_to,
        not candidate.is_bot,
        candidate.idle_since,
        candidate.agent_id,
    )
