"""The rules of conversations: who sees, writes and alters them, their states, and their partitions."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_chat.domain.actors import Actor, ActorRole, UserKey
from deskwire_chat.domain.changes import Change, check_version
from deskwire_common.errors import (
    FailedPrecondition,
    NotFound,
    PermissionDenied,
)

PARTITIONS: Final = 16
"""How many partitions there are. It never changes: a conversation's partition is part of what is stored."""


class State(IntEnum):
    """The state of a conversation; the numbers are those of the contract and the database."""

    QUEUED = 1
    ACTIVE = 2
    CLOSED = 3


class TransferCause(IntEnum):
    """Why a conversation was given on; the numbers are those of the contract."""

    ASKED = 1
    AGENT_ABSENT = 2
    AGENT_DISABLED = 3


@dataclass(slots=True)
class Conversation:
    """One thread between a customer and the desk."""

    conversation_id: str
    tenant: str
    state: State
    customer_id: str
    visitor_id: str
    agent_id: str
    epoch: int
    head_seq: int
    version: int
    created_at: int
    assigned_at: int
    closed_at: int
    traceparent: str = ""
    agent_is_bot: bool = False
    human_wanted: bool = False
    """Whether it was handed off to people: only they get it from the queue."""

    @property
    def partition(self) -> int:
        """The partition it is in, for ever."""
        return partition_of(self.conversation_id)

    @property
    def agent_role(self) -> ActorRole:
        """The role of the agent or bot that has it; meaningful only while one has it."""
        return ActorRole.BOT if self.agent_is_bot else ActorRole.AGENT

    def copy(self) -> Conversation:
        """Return a copy. dataclasses.replace takes four times as long, and every message needs this."""
        return Conversation(
            self.conversation_id,
            self.tenant,
            self.state,
            self.customer_id,
            self.visitor_id,
            self.agent_id,
            self.epoch,
            self.head_seq,
            self.version,
            self.created_at,
            self.assigned_at,
            self.closed_at,
            self.traceparent,
            self.agent_is_bot,
            self.human_wanted,
        )


@lru_cache(65_536)  # called several times per message
def partition_of(conversation_id: str) -> int:
    """Return the partition, 0 to PARTITIONS-1, of a conversation."""
    return zlib.crc32(conversation_id.encode()) % PARTITIONS


def conversation_not_found(conversation_id: str) -> NotFound:
    """Return the error for a conversation that the caller's tenant, or the visitor, doesn't have."""
    return NotFound(
        f"no conversation {conversation_id} that you can see",
        reason=reasons.ERROR_REASON_CONVERSATION_NOT_FOUND,
    )


def not_a_participant() -> PermissionDenied:
    """Return the error for an agent who tries what only the conversation's agent may do."""
    return PermissionDenied(
        "the conversation is not assigned to you",
        reason=reasons.ERROR_REASON_NOT_A_PARTICIPANT,
    )


def may_see(conversation: Conversation, who: Actor) -> bool:
    """Whether `who` may read the conversation: a visitor only their own, others every one of their tenant."""
    if conversation.tenant != who.tenant:
        return False
    return who.role != ActorRole.VISITOR or conversation.visitor_id == who.subject


def takes_part(conversation: Conversation, who: Actor) -> bool:
    """Whether `who` is a participant: the visitor, or the agent or bot that has it."""
    if conversation.tenant != who.tenant:
        return False
    if who.role == ActorRole.VISITOR:
        return conversation.visitor_id == who.subject
    return conversation.agent_id == who.subject != "" and who.role == conversation.agent_role


def participants(conversation: Conversation) -> list[UserKey]:
    """Return who gets pushes of a conversation: the visitor first, then the agent or bot that has it."""
    users: list[UserKey] = [(conversation.tenant, ActorRole.VISITOR, conversation.visitor_id)]
    if conversation.agent_id:
        users.append((conversation.tenant, conversation.agent_role, conversation.agent_id))
    return users


def check_may_write(conversation: Conversation, who: Actor) -> None:
    """Raise unless `who` may add a message to the conversation.

    NotFound for a conversation that `who` can't see, PermissionDenied (NOT_A_PARTICIPANT) for an agent or bot that
    doesn't have it, FailedPrecondition (CONVERSATION_CLOSED) when it is closed.
    """
    if not may_see(conversation, who):
        raise conversation_not_found(conversation.conversation_id)
    if who.role in {ActorRole.AGENT, ActorRole.BOT} and not takes_part(conversation, who):
        raise not_a_participant()
    if conversation.state == State.CLOSED:
        raise FailedPrecondition(
            "the conversation is closed; open another one with a new conversation_id",
            reason=reasons.ERROR_REASON_CONVERSATION_CLOSED,
        )


def check_may_alter(conversation: Conversation, who: Actor) -> None:
    """Raise unless `who` may close or transfer the conversation: a bot only its own (NOT_A_PARTICIPANT)."""
    if not may_see(conversation, who):
        raise conversation_not_found(conversation.conversation_id)
    if who.role == ActorRole.BOT and not takes_part(conversation, who):
        raise not_a_participant()


def close(conversation: Conversation, *, expected_version: int, now: int) -> dict[str, Change]:
    """Close the conversation in place and return the fields that changed.

    Raises VersionMismatch, or FailedPrecondition (INVALID_STATE) when it is closed already.
    """
    check_version(conversation.version, expected_version)
    if conversation.state == State.CLOSED:
        raise FailedPrecondition(
            "the conversation is closed already",
            reason=reasons.ERROR_REASON_INVALID_STATE,
            metadata={"state": "CLOSED"},
        )
    before = conversation.state
    conversation.state = State.CLOSED
    conversation.closed_at = now
    conversation.version += 1
    return {"state": Change(state_name(before), state_name(State.CLOSED))}


def assign(conversation: Conversation, *, agent_id: str, bot: bool, now: int) -> dict[str, Change]:
    """Give a QUEUED conversation to an agent or a bot, in place, and return the fields that changed."""
    before = conversation.state
    conversation.state = State.ACTIVE
    conversation.agent_id = agent_id
    conversation.agent_is_bot = bot
    conversation.assigned_at = now
    conversation.version += 1
    return {
        "state": Change(state_name(before), state_name(State.ACTIVE)),
        "agent_id": Change(None, agent_id),
        "agent_role": Change(None, _role_name(conversation)),
    }


def transfer(
    conversation: Conversation, *, agent_id: str, bot: bool = False, expected_version: int, now: int
) -> dict[str, Change]:
    """Give an open conversation to another agent or a `bot` (empty: the queue), in place; return the changed fields.

    In the queue it then waits for a person, as its last agent or bot wasn't enough; given to a bot it doesn't.

    Raises VersionMismatch, or FailedPrecondition (INVALID_STATE) when it is closed, or already where it should go.
    """
    check_version(conversation.version, expected_version)
    if conversation.state == State.CLOSED or conversation.agent_id == agent_id:
        raise FailedPrecondition(
            "the conversation is closed, or already where it should go",
            reason=reasons.ERROR_REASON_INVALID_STATE,
            metadata={"state": conversation.state.name},
        )
    before = conversation.copy()
    changes = {"agent_id": Change(conversation.agent_id or None, agent_id or None)}
    conversation.state = State.ACTIVE if agent_id else State.QUEUED
    conversation.agent_id = agent_id
    conversation.agent_is_bot = bot
    if bot or not agent_id:
        conversation.human_wanted = not agent_id
    if conversation.state != before.state:
        changes["state"] = Change(state_name(before.state), state_name(conversation.state))
    if _role_name(conversation) != _role_name(before):
        changes["agent_role"] = Change(_role_name(before), _role_name(conversation))
    if conversation.human_wanted != before.human_wanted:
        changes["human_wanted"] = Change(before.human_wanted, conversation.human_wanted)
    conversation.assigned_at = now if agent_id else 0
    conversation.version += 1
    return changes


def _role_name(conversation: Conversation) -> str | None:
    return f"ROLE_{conversation.agent_role.name}" if conversation.agent_id else None


def state_name(state: State) -> str:
    """Return the name of a state in the JSON form of events."""
    return f"CONVERSATION_STATE_{state.name}"


def greeting(agent_name: str) -> str:
    """Return the text that deskwire sends when an agent takes a conversation."""
    return f"{agent_name} is here to help you."
