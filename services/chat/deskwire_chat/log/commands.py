"""Commands: what the log is asked to write, and how each command is answered when it isn't written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Final, Protocol

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_chat.domain.actors import Actor
from deskwire_chat.domain.agents import Agent
from deskwire_chat.domain.conversations import Conversation
from deskwire_chat.domain.messages import Kind, Message
from deskwire_chat.domain.work import WorkItem
from deskwire_chat.log import codec
from deskwire_chat.owners.errors import NotOwner
from deskwire_chat.routing.router import Router
from deskwire_chat.store.messages import SentKey
from deskwire_common.db import UnitOfWork
from deskwire_common.errors import DeskwireError, Internal, Unavailable
from deskwire_common.events import DomainEvent
from deskwire_common.lines import HeldLines
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS

RETRY_AFTER: Final = 1.0

Held = HeldLines[tuple[Hashable, str]]
"""The held lines, by connection and conversation: the message that must be sent again first."""


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
        """Encode a message, once for all who get it."""
        actor = codec.actor(item.role, item.subject, item.name)
        time = codec.timestamp(item.created_at)
        return cls(item, epoch, codec.message(item, actor, time), actor, time)


Reply = Callable[[Stored | DeskwireError], None]


def reply_to(future: asyncio.Future[Stored]) -> Reply:
    """Return a reply that completes a future, unless its waiter has gone."""

    def reply(result: Stored | DeskwireError) -> None:
        if isinstance(result, Stored):
            _succeed(future, result)
        else:
            _fail(future, result)

    return reply


class Committing(Protocol):
    """Writes the commands that are alone in their transaction (commit.Committer)."""

    async def alter(self, command: Alter) -> None: ...

    async def accept(self, command: Accept) -> None: ...


class Giving(Protocol):
    """Gives conversations to agents in a transaction (group.Group)."""

    async def propose(self, uow: UnitOfWork, command: Propose) -> None: ...

    async def accept(self, uow: UnitOfWork, command: Accept) -> Conversation: ...


class _Command:
    """What holds for all commands unless they override it."""

    __slots__ = ()

    is_alone: ClassVar[bool] = False
    """Whether the command has a transaction of its own instead of joining a group."""
    is_bounded: ClassVar[bool] = True
    """Whether the command is refused when too many commands wait."""

    def hold(self, held: Held) -> None:
        """Hold the command's line, if it has one: the command was refused for now."""


@dataclass(slots=True)
class Put(_Command):
    """A message to store. `line` is the connection it arrived on; that connection gets no push of the message.

    `term` is the term of its partition that the gateway knew when it sent the message. A message sent under an earlier
    term is refused, as the gateway sends all of those again, in order. 0: the term when the message is queued.
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
    """The key by which the message is stored only once."""

    def __post_init__(self) -> None:
        self.key = (
            self.conversation_id,
            int(self.who.role),
            self.who.subject,
            self.client_msg_id,
        )

    def hold(self, held: Held) -> None:
        """Have later messages of its connection and conversation refused until it comes again."""
        if self.line is not None:
            held.hold((self.line, self.conversation_id), self.client_msg_id)

    def refuse(self, error: DeskwireError) -> None:
        """Answer that the message isn't stored."""
        METRICS.messages_refused.labels(error.reason_name).inc()
        self.reply(error)

    def not_ours(self) -> None:
        """Answer that another process has its partition."""
        self.refuse(NotOwner())

    def give_up(self, cause: Exception, held: Held) -> None:
        """Answer that the message could not be stored, even when retried by itself."""
        if isinstance(cause, DeskwireError):
            self.hold(held)
            self.refuse(
                Unavailable(
                    "the message could not be stored now; send it again", retry_after=RETRY_AFTER
                )
            )
            return
        get_logger().error("message_refused", conversation_id=self.conversation_id, exc_info=cause)
        self.refuse(Internal("the message could not be stored; see the server's log"))


@dataclass(slots=True)
class Propose(_Command):
    """Routing's proposal of a conversation for an agent."""

    is_bounded = False

    item: WorkItem
    agent: Agent
    router: Router
    term: int = 0
    conversation_id: str = field(init=False)

    def __post_init__(self) -> None:
        self.conversation_id = self.item.id

    async def decide(self, uow: UnitOfWork, giving: Giving) -> None:
        """Carry the proposal out in a group's transaction; routing hears after it if that fails, and why."""
        await giving.propose(uow, self)

    def not_ours(self) -> None:
        """Tell routing that another process has the partition, whose routing has the conversation."""
        self.refuse(waits=None, doubtful=False)

    def give_up(self, cause: Exception, held: Held) -> None:  # noqa: ARG002 - as Put has it
        """Tell routing that nothing was decided: the conversation still waits, and the agent's state is in doubt."""
        self.refuse(waits=self.item, doubtful=True)

    def refuse(self, *, waits: WorkItem | None, doubtful: bool) -> None:
        """Tell routing; see Router.proposal_refused."""
        self.router.proposal_refused(
            self.item.tenant, self.item.id, self.agent.agent_id, waits=waits, doubtful=doubtful
        )


Give = Callable[[], Awaitable[Conversation]]
"""Gives the conversation to the agent, in a transaction, and returns it."""


@dataclass(slots=True)
class Accept(_Command):
    """An agent's acceptance of an offer, in a transaction of its own.

    `once` gets the transaction and a function that gives the agent the conversation, and calls it once per request; its
    result goes to `future` after the commit.
    """

    is_alone = True
    is_bounded = False

    item: WorkItem
    agent: Agent
    router: Router
    once: Callable[[UnitOfWork, Give], Awaitable[Any]]
    future: asyncio.Future[Any]
    result: Any = None
    term: int = 0
    conversation_id: str = field(init=False)

    def __post_init__(self) -> None:
        self.conversation_id = self.item.id

    async def commit(self, committing: Committing) -> None:
        """Write it, and answer."""
        await committing.accept(self)

    async def decide(self, uow: UnitOfWork, giving: Giving) -> None:
        """Give the agent the conversation in the transaction."""
        self.result = await self.once(uow, partial(giving.accept, uow, self))

    def refuse(self, error: Exception) -> None:
        """Answer that the agent doesn't get the conversation; it is offered again unless it no longer waits here."""
        over = isinstance(error, NotOwner) or (
            isinstance(error, DeskwireError)
            and error.reason == reasons.ERROR_REASON_OFFER_NOT_FOUND
        )
        self._settle(waits=None if over else self.item)
        _fail(self.future, error)

    def repeated(self) -> None:
        """Put back the offer that was claimed now: this request was already carried out, for an earlier offer."""
        self._settle(waits=self.item)

    def answer(self) -> None:
        """Answer with the result."""
        _succeed(self.future, self.result)

    def _settle(self, *, waits: WorkItem | None) -> None:
        self.router.proposal_refused(
            self.item.tenant,
            self.item.id,
            self.agent.agent_id,
            waits=waits,
            doubtful=waits is not None,
        )


@dataclass(slots=True)
class Alter(_Command):
    """A change of one conversation in a transaction of its own: close, transfer.

    `work` gets the transaction and a copy of the conversation (None: there is none), changes the copy, and writes
    everything but the conversation. Its result goes to `future` after the commit.
    """

    is_alone = True

    conversation_id: str
    work: Callable[[UnitOfWork, Conversation | None], Awaitable[Any]]
    future: asyncio.Future[Any]
    term: int = 0

    async def commit(self, committing: Committing) -> None:
        """Write it, and answer."""
        await committing.alter(self)

    def refuse(self, error: Exception) -> None:
        """Answer with the error: nothing was changed."""
        _fail(self.future, error)

    def answer(self, result: Any) -> None:
        """Answer with the result."""
        _succeed(self.future, result)


@dataclass(slots=True)
class Imported:
    """What an import comes to: its result, its conversation, the messages that are new, and what writes it all.

    `flush` writes everything but the heads, and returns the events; None: there is nothing to write.
    """

    result: Any
    conversation: Conversation
    messages: list[Message]
    flush: Callable[[UnitOfWork], Awaitable[list[DomainEvent]]] | None


@dataclass(slots=True)
class Import(_Command):
    """A part of another system's conversation: `size` messages, in a transaction without anything but imports.

    `work` gets the transaction and the partition's head, and decides without writing. The result goes to `future` after
    the commit.
    """

    is_alone = True

    conversation_id: str
    size: int
    work: Callable[[UnitOfWork, int], Awaitable[Imported]]
    future: asyncio.Future[Any]
    term: int = 0

    def refuse(self, error: Exception) -> None:
        """Answer with the error: nothing was stored."""
        _fail(self.future, error)

    def answer(self, result: Any) -> None:
        """Answer with the result."""
        _succeed(self.future, result)


@dataclass(slots=True)
class Mark(_Command):
    """Signals, when its turn in a lane comes, that everything before it is done."""

    is_alone = True

    future: asyncio.Future[None]

    async def commit(self, committing: Committing) -> None:  # noqa: ARG002 - as the others have it
        """Signal it."""
        _succeed(self.future, None)


Command = Put | Propose | Accept | Alter | Import
Grouped = Put | Propose
"""The commands that are written in groups."""


def _succeed(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
