"""What the shard is asked to do, and how it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_chat.domain.actors import Actor, ActorRole
from deskwire_chat.domain.agents import Agent
from deskwire_chat.domain.conversations import Conversation
from deskwire_chat.domain.messages import Kind, Message
from deskwire_chat.domain.work import WorkItem
from deskwire_chat.log import codec
from deskwire_chat.store.messages import SentKey
from deskwire_common.db import UnitOfWork
from deskwire_common.errors import DeskwireError, Unavailable

UserKey = tuple[str, int, str]
"""Tenant, role, subject: who gets pushes."""


@dataclass(slots=True)
class Stored:
    """A committed message with its encoded parts. Nobody changes it; a frozen one would take twice as long to make."""

    message: Message
    epoch: int
    encoded: bytes
    encoded_actor: bytes
    encoded_time: bytes
    duplicate: bool = False

    @classmethod
    def of(cls, item: Message, epoch: int) -> Stored:
        """Encode a message, once for everybody."""
        actor = codec.actor(item.role, item.subject, item.name)
        time = codec.timestamp(item.created_at)
        return cls(item, epoch, codec.message(item, actor, time), actor, time)


Reply = Callable[[Stored | DeskwireError], None]


def reply_to(future: asyncio.Future[Stored]) -> Reply:
    """Return a reply that ends a future, unless who waited for it has gone."""

    def reply(result: Stored | DeskwireError) -> None:
        if future.done():
            return
        if isinstance(result, Stored):
            future.set_result(result)
        else:
            future.set_exception(result)

    return reply


@dataclass(slots=True)
class Store:
    """A message to store. `line` is the connection it came on: it holds the line, and gets no push of its own.

    `term` is the one of its partition that its gateway knew when it sent it: what was sent under an earlier one is
    refused, as the gateway sends all of it again, in order. 0: the one at which it is queued.
    """

    who: Actor
    conversation_id: str
    client_msg_id: str
    body: bytes
    reply: Reply
    traceparent: str = ""
    line: Hashable = None
    kind: int = Kind.TEXT
    target_seq: int = 0
    term: int = 0

    key: SentKey = field(init=False)
    """What is stored once."""

    def __post_init__(self) -> None:
        self.key = (
            self.conversation_id,
            int(self.who.role),
            self.who.subject,
            self.client_msg_id,
        )


@dataclass(slots=True)
class Assign:
    """Routing's proposal."""

    item: WorkItem
    agent: Agent
    term: int = 0

    @property
    def conversation_id(self) -> str:
        """Of which conversation."""
        return self.item.id


Give = Callable[[], Awaitable[Conversation]]
"""Gives the conversation to the agent, in a transaction, and returns it."""


@dataclass(slots=True, kw_only=True)
class Accept(Assign):
    """An agent's yes to an offer, in a transaction of its own.

    `once` gets the transaction and what gives them the conversation, and does that once per request; its result goes to
    `future` after the commit.
    """

    once: Callable[[UnitOfWork, Give], Awaitable[Any]]
    future: asyncio.Future[Any]
    result: Any = None


@dataclass(slots=True)
class Alter:
    """A change of one conversation in a transaction of its own: close, transfer.

    `work` gets the transaction and a copy of the conversation (None: there is none), changes the copy and writes
    everything but the conversation. Its result goes to `future` after the commit.
    """

    conversation_id: str
    work: Callable[[UnitOfWork, Conversation | None], Awaitable[Any]]
    future: asyncio.Future[Any]
    term: int = 0


@dataclass(slots=True)
class Mark:
    """Says, when its turn in a lane comes, that everything before it is done."""

    future: asyncio.Future[None]


Command = Store | Assign | Alter


class NotOwner(Unavailable):
    """Another process has the partition, or nobody for a moment: nothing was done."""

    default_reason = reasons.ERROR_REASON_NOT_OWNER

    def __init__(self) -> None:
        super().__init__(
            "this process doesn't own the conversation; send it again", retry_after=0.2
        )


class Deliver(Protocol):
    """Sends bytes to the connections of users."""

    def __call__(
        self, users: Iterable[UserKey], batch: bytes, *, without: Hashable = None
    ) -> None: ...


class Log(Protocol):
    """Takes what was committed, on its way to Kafka (publisher.Publisher)."""

    def committed(self, stored: Sequence[Stored]) -> None: ...

    def published(self, numbers: Iterable[int]) -> dict[int, int]: ...

    def saved(self, published: Mapping[int, int]) -> None: ...


def participants(conversation: Conversation) -> list[UserKey]:
    """Who is told of what happens in a conversation."""
    users: list[UserKey] = [(conversation.tenant, ActorRole.VISITOR, conversation.visitor_id)]
    if conversation.agent_id:
        users.append((conversation.tenant, conversation.agent_role, conversation.agent_id))
    return users
