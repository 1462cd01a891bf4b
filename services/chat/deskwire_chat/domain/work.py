"""Work items: they wait until routing finds an agent for them."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from deskwire_chat.domain.conversations import Conversation

NO_SKILLS: Final[frozenset[str]] = frozenset()
NOBODY: Final[frozenset[str]] = frozenset()


class WorkKind(StrEnum):
    """The kind of a work item."""

    CONVERSATION = "conversation"


class WorkItem(NamedTuple):
    """A work item as routing knows it. `since` is microseconds since 1970 UTC.

    `queue` is the tenant's queue in which it waits, "" the only one; `skills` are those that its agent must have.
    `human_wanted`: bots don't get it, as it was handed off to people. `known_to`: the agents and bots who were known to
    have another open conversation of its customer when it came to wait.
    """

    kind: WorkKind
    id: str
    tenant: str
    queue: str
    skills: frozenset[str]
    since: int
    human_wanted: bool = False
    customer_id: str = ""
    known_to: frozenset[str] = NOBODY


def waiting_conversation(
    tenant: str,
    conversation_id: str,
    since: int,
    *,
    human_wanted: bool = False,
    customer_id: str = "",
    known_to: frozenset[str] = NOBODY,
) -> WorkItem:
    """Return the work item of a conversation that waits."""
    return WorkItem(
        WorkKind.CONVERSATION,
        conversation_id,
        tenant,
        "",
        NO_SKILLS,
        since,
        human_wanted,
        customer_id,
        known_to,
    )


def work_item_of(conversation: Conversation, known_to: frozenset[str] = NOBODY) -> WorkItem:
    """Return the work item of a conversation that waits."""
    return waiting_conversation(
        conversation.tenant,
        conversation.conversation_id,
        conversation.created_at,
        human_wanted=conversation.human_wanted,
        customer_id=conversation.customer_id,
        known_to=known_to,
    )
