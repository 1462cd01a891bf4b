"""Who gets a work item: a pure rule, which says why.

Whoever has room, the skills that it needs, and hasn't refused it of late may have it. A bot comes before any person,
unless a person is wanted. Among several it is the one who has been idle longest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from deskwire_chat.domain.work import WorkItem


class Reason(StrEnum):
    """Why somebody gets a work item, or doesn't."""

    IDLE_LONGEST = "idle_longest"
    """Nobody who may have it has been idle longer."""
    BOT_FIRST = "bot_first"
    """A bot may have it; this one has been idle longest of them."""
    NO_ROOM = "no_room"
    """They have as much as they take, or take nothing now."""
    HUMAN_WANTED = "human_wanted"
    """It was handed off: bots don't get it."""
    LACKS_SKILL = "lacks_skill"
    """It needs a skill that they don't have."""
    REFUSED_IT = "refused_it"
    """They declined it, or let its offer pass, a short while ago."""
    NOBODY = "nobody"
    """Nobody may have it now."""


class Candidate(Protocol):
    """Somebody who might get a work item."""

    @property
    def agent_id(self) -> str:
        """Who it is; unique in the tenant."""
        ...

    @property
    def is_bot(self) -> bool:
        """Whether it is a program."""
        ...

    @property
    def room(self) -> int:
        """How many more items they take now."""
        ...

    @property
    def idle_since(self) -> int:
        """When they last got an item, in microseconds; 0: never."""
        ...

    @property
    def skills(self) -> frozenset[str]:
        """What they can do."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """Who gets a work item, and why; `agent_id` is None when nobody does.

    `obstacles`: why others don't get it, of those who were looked at; of all when nobody does. Who merely was idle for
    less long isn't in it.
    """

    agent_id: str | None
    reason: Reason
    obstacles: Mapping[str, Reason]


def choose(
    item: WorkItem, candidates: Iterable[Candidate], *, refused_by: Collection[str] = ()
) -> Choice:
    """Return who of a tenant's agents gets `item`. `refused_by`: who isn't asked for it again yet."""
    best: Candidate | None = None
    obstacles: dict[str, Reason] = {}
    for candidate in candidates:
        # The rank first, as it costs less: only who comes before the best so far is looked at.
        if best is not None and _rank(candidate) > _rank(best):
            continue
        reason = obstacle(item, candidate, refused_by=refused_by)
        if reason is None:
            best = candidate
        else:
            obstacles[candidate.agent_id] = reason
    if best is None:
        return Choice(None, Reason.NOBODY, obstacles)
    reason = Reason.BOT_FIRST if best.is_bot else Reason.IDLE_LONGEST
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


def _rank(candidate: Candidate) -> tuple[bool, int, str]:
    return not candidate.is_bot, candidate.idle_since, candidate.agent_id
