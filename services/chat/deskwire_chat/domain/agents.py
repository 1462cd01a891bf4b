"""The rules of agents and bots, and of the offers that they get."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_chat.domain.actors import Actor, ActorRole
from deskwire_chat.domain.changes import Change
from deskwire_common.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
)

DEFAULT_CAPACITY: Final = 5
"""How many conversations a new agent takes at once, unless they choose another number."""


class Status(IntEnum):
    """Whether an agent takes work; the numbers are those of the contract and the database."""

    AVAILABLE = 1
    AWAY = 2


class OfferEnd(IntEnum):
    """How an offer ended; the numbers are those of the contract."""

    ACCEPTED = 1
    EXPIRED = 2
    DECLINED = 3
    WITHDRAWN = 4


@dataclass(frozen=True, slots=True)
class Agent:
    """One person at the desk, or a bot; a person never becomes a bot, nor the other way round."""

    tenant: str
    agent_id: str
    display_name: str
    status: Status
    capacity: int
    active: int
    idle_since: int
    version: int
    disabled: bool = False
    bot: bool = False


def status_name(status: Status) -> str:
    """Return the name of a status in the JSON form of events."""
    return f"AGENT_STATUS_{status.name}"


def agent_not_found(agent_id: str) -> NotFound:
    """Return the error for an agent that the caller's tenant doesn't have."""
    return NotFound(f"no agent {agent_id}", reason=reasons.ERROR_REASON_AGENT_NOT_FOUND)


def agent_has_no_room(agent_id: str) -> FailedPrecondition:
    """Return the error for an agent who is away or disabled, or has as many conversations as they take."""
    return FailedPrecondition(
        f"agent {agent_id} is away, disabled or has no room",
        reason=reasons.ERROR_REASON_AGENT_UNAVAILABLE,
    )


def offer_not_found(conversation_id: str) -> NotFound:
    """Return the error for an offer that is over, or was never made to the caller."""
    return NotFound(
        f"conversation {conversation_id} isn't offered to you now",
        reason=reasons.ERROR_REASON_OFFER_NOT_FOUND,
    )


def check_is(agent: Agent, who: Actor) -> None:
    """Raise AlreadyExists for a bot with the id of a person at the desk, and the other way round."""
    if who.role in {ActorRole.AGENT, ActorRole.BOT} and agent.bot != (who.role == ActorRole.BOT):
        what = "a bot" if agent.bot else "a person"
        raise AlreadyExists(
            f"{agent.agent_id} is {what} of this desk: agents and bots need ids of their own"
        )


def let_in_again(agent: Agent) -> tuple[Agent, dict[str, Change]]:
    """Return an agent who was just enabled as AWAY, and the fields that changed; the version stays.

    They may have been gone for long: they get work when they say that they are there.
    """
    if agent.status == Status.AWAY:
        return agent, {}
    change = Change(status_name(agent.status), status_name(Status.AWAY))
    return replace(agent, status=Status.AWAY), {"status": change}


def changed_agent(
    agent: Agent, *, status: Status, capacity: int, display_name: str
) -> tuple[Agent, dict[str, Change]]:
    """Return the agent with what they set, and the fields that changed; 0 and "" mean "as before"."""
    after = replace(
        agent,
        status=status,
        capacity=capacity or agent.capacity,
        display_name=display_name or agent.display_name,
    )
    changes: dict[str, Change] = {}
    if after.status != agent.status:
        changes["status"] = Change(status_name(agent.status), status_name(after.status))
    if after.capacity != agent.capacity:
        changes["capacity"] = Change(agent.capacity, after.capacity)
    if after.display_name != agent.display_name:
        changes["display_name"] = Change(agent.display_name or None, after.display_name or None)
    if not changes:
        return agent, {}
    return replace(after, version=agent.version + 1), changes
