"""A group: the work of one transaction of the writer. Nothing in it touches memory before the commit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Protocol

from opentelemetry.trace import Span

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_chat import domain, events, views
from deskwire_chat.domain.actors import Actor, ActorRole, UserKey
from deskwire_chat.domain.agents import Agent
from deskwire_chat.domain.conversations import Conversation, State, participants
from deskwire_chat.domain.messages import Kind, Message
from deskwire_chat.domain.openings import OpeningLimits
from deskwire_chat.domain.work import WorkItem, work_item_of
from deskwire_chat.events import Occasion
from deskwire_chat.log import codec
from deskwire_chat.log.changes import Changes
from deskwire_chat.log.commands import Accept, Grouped, Propose, Put, Stored
from deskwire_chat.log.memory import Known
from deskwire_chat.log.openings import Openings
from deskwire_chat.routing.offers import AgentKey
from deskwire_chat.routing.router import Router
from deskwire_chat.store import agents, conversations, messages
from deskwire_chat.store.messages import SentKey
from deskwire_chat.store.partitions import Partition, Steps
from deskwire_common import telemetry
from deskwire_common.db import Statements, UnitOfWork
from deskwire_common.errors import AlreadyExists, Unavailable
from deskwire_common.events import DomainEvent
from deskwire_common.ids import Ids
from deskwire_common.metrics import METRICS, Tally


@cache
def _stored_by(role: ActorRole) -> Tally:
    return METRICS.messages_stored.labels(role.name.lower())


def _again(command: Put, earlier: Stored) -> Stored:
    """Return the first answer to a Send that was repeated. Raises AlreadyExists for another content."""
    # A message that was changed since can't be compared with what was sent.
    if earlier.message.body != command.body and not earlier.message.changed_at:
        raise AlreadyExists(
            f"client_msg_id {command.client_msg_id!r} was used with another content",
            reason=reasons.ERROR_REASON_CLIENT_MSG_ID_REUSED,
        )
    METRICS.messages_duplicate.inc()
    return replace(earlier, duplicate=True)


class Deliver(Protocol):
    """Sends bytes to the connections of users."""

    def __call__(
        self, users: Iterable[UserKey], batch: bytes, *, without: Hashable = None
    ) -> None: ...


CustomerKey = tuple[str, str]
"""Tenant and customer_id."""


class CustomersChanged(Protocol):
    """Has customers sent to the agents and bots who talk to them (live.customer_feed)."""

    def __call__(self, keys: Collection[CustomerKey], *, in_doubt: bool = False) -> None: ...


@dataclass(frozen=True, slots=True)
class Collaborators:
    """What groups work with, and what they report to once they are committed.

    `region` is the region of mobile numbers without a leading + in visitors' tokens.
    """

    ids: Ids
    router: Router
    deliver: Deliver
    introduce: Callable[[Conversation], None]
    customers_changed: CustomersChanged
    redacted: Callable[[str], None]
    in_doubt: Callable[[str, Iterable[AgentKey]], None]
    limits: OpeningLimits = field(default_factory=OpeningLimits)
    region: str = ""


class Group:
    """One transaction, built command by command; `finish` does what is in `after` once it is committed."""

    def __init__(
        self,
        collaborators: Collaborators,
        partitions: Mapping[int, Partition],
        known: Known,
        now: int,
    ) -> None:
        self.now = now
        self.heads: dict[int, int] = {}
        self.stored: dict[SentKey, Stored] = {}
        self.touched: dict[str, Conversation] = {}
        self.opened: set[str] = set()
        self.openings = Openings(
            collaborators.ids, now, region=collaborators.region, limits=collaborators.limits
        )
        self.after: list[Callable[[], None]] = []
        self.spans: list[Span] = []
        self._with = collaborators
        self._partitions = partitions
        self._known = known
        self._changes = Changes(now)
        self._altered: list[tuple[Conversation, int]] = []
        self._events: list[DomainEvent] = []

    async def load(
        self, uow: UnitOfWork, commands: Sequence[Grouped | Accept], openers: Iterable[Actor]
    ) -> None:
        """Read what commands need and memory doesn't have; `openers` are the visitors who may open conversations."""
        given = [each.item for each in commands if isinstance(each, Propose)]
        await self.openings.load(uow, openers, given)
        await self._changes.load(uow, commands)

    def finish(self) -> None:
        """Do what waited for the commit, once.

        The waiting calls refer to the group. If they were kept, every group would be a reference cycle, and the garbage
        collector would have to visit all its messages.
        """
        after, self.after = self.after, []
        for each in after:
            each()

    # ------------------------------------------------------------------------------------ messages

    def put(self, command: Put) -> Stored:
        """Give a message its place, or return the one it has. Raises the domain's refusals."""
        stored = self._place(command)
        self.after.append(lambda: command.reply(stored))
        if not stored.duplicate:
            self._push_message(stored, without=command.line)
        return stored

    def _place(self, command: Put) -> Stored:
        earlier = self.stored.get(command.key)
        conversation = self._conversation(command.conversation_id)
        if conversation is not None and not domain.conversations.may_see(conversation, command.who):
            raise domain.conversations.conversation_not_found(command.conversation_id)
        if earlier is None and command.key in self._known.sent and conversation is not None:
            earlier = Stored.of(self._known.sent[command.key], conversation.epoch)
        if earlier is not None:
            return _again(command, earlier)
        traceparent = ""
        if command.traceparent:
            span = telemetry.start_span("chat.store", command.traceparent)
            self.spans.append(span)
            traceparent = telemetry.traceparent_of(span) or command.traceparent
        if conversation is not None:
            domain.conversations.check_may_write(conversation, command.who)
            domain.messages.check_kind(command.kind, command.who)
        # Check this before a conversation is opened for the message.
        carried = self._changes.attachment_of(command) if command.kind == Kind.ATTACHMENT else None
        if conversation is None:
            if command.kind not in {Kind.TEXT, Kind.ATTACHMENT}:
                raise domain.conversations.conversation_not_found(command.conversation_id)
            conversation = self._open(command, traceparent)
        target = self._changes.target_of(command, self._fresh()) if command.target_seq else None
        stored = self._append(
            conversation, command.who, command.client_msg_id, command.body, traceparent, command
        )
        if target is not None:
            self._change(target, command)
        if carried is not None:
            self._changes.carry(carried, stored.message.seq)
        return stored

    def _change(self, target: Message, command: Put) -> None:
        self._changes.change(target, command, self._fresh())
        if command.kind == Kind.REDACTION:
            self.after.append(lambda: self._with.redacted(command.conversation_id))

    def _fresh(self) -> Iterator[Message]:
        return (each.message for each in self.stored.values())

    def _append(
        self,
        conversation: Conversation,
        who: Actor,
        client_msg_id: str,
        body: bytes,
        traceparent: str,
        command: Put | None = None,
    ) -> Stored:
        number = conversation.partition
        head = self.heads.get(number, self._partitions[number].head) + 1
        self.heads[number] = head
        conversation.head_seq += 1
        item = Message(
            message_id=self._with.ids.uuid7(),
            conversation_id=conversation.conversation_id,
            tenant=conversation.tenant,
            seq=conversation.head_seq,
            position=head,
            role=int(who.role),
            subject=who.subject,
            name=who.name,
            origin=who.origin,
            client_msg_id=client_msg_id,
            body=body,
            created_at=self.now,
            traceparent=traceparent,
            kind=command.kind if command is not None else Kind.TEXT,
            target_seq=command.target_seq if command is not None else 0,
        )
        stored = Stored.of(item, conversation.epoch)
        key = item.conversation_id, item.role, item.subject, item.client_msg_id
        self.stored[key if command is None else command.key] = stored
        _stored_by(who.role).inc()
        return stored

    def _push_message(self, stored: Stored, *, without: Hashable = None) -> None:
        users = participants(self.touched[stored.message.conversation_id])
        batch = codec.message_push(stored.encoded, stored.epoch)
        if stored.message.kind == Kind.NOTE:
            # The visitor is the first of the users.
            visitor, users = users[:1], users[1:]
            hidden = Stored.of(replace(stored.message, body=views.content.WITHHELD), stored.epoch)
            withheld = codec.message_push(hidden.encoded, stored.epoch)
            self.after.append(lambda: self._with.deliver(visitor, withheld))
        self.after.append(lambda: self._with.deliver(users, batch, without=without))

    # ------------------------------------------------------------------------------- conversations

    def _conversation(self, conversation_id: str) -> Conversation | None:
        """Return the conversation as this group has it: a copy that may be changed."""
        found = self.touched.get(conversation_id)
        if found is None and (known := self._known.conversations.get(conversation_id)) is not None:
            found = self.touched[conversation_id] = known.copy()
        return found

    def _open(self, command: Put, traceparent: str) -> Conversation:
        who = command.who
        if who.role != ActorRole.VISITOR:
            raise domain.conversations.conversation_not_found(command.conversation_id)
        customer = self.openings.open(
            who, traceparent=traceparent, correlation_id=command.conversation_id
        )
        conversation = Conversation(
            conversation_id=command.conversation_id,
            tenant=who.tenant,
            state=State.QUEUED,
            customer_id=customer.customer_id,
            visitor_id=who.subject,
            agent_id="",
            epoch=1,
            head_seq=0,
            version=1,
            created_at=self.now,
            assigned_at=0,
            closed_at=0,
            traceparent=traceparent,
        )
        self.touched[conversation.conversation_id] = conversation
        self.opened.add(conversation.conversation_id)
        on = Occasion(self._with.ids.uuid7(), self.now, who, traceparent)
        self._events.append(events.conversation_opened(on, conversation, customer))
        item = work_item_of(conversation, self.openings.known_to(customer.customer_id))
        self.after.append(lambda: self._with.router.enqueue(item))
        return conversation

    async def propose(self, uow: UnitOfWork, command: Propose) -> None:
        """Give a conversation to the agent whom routing proposes, if it still waits and they still have room.

        It is given back to routing when an agent of whom routing didn't know has its customer, and may have it, too.
        """
        tenant, agent = command.item.tenant, command.agent
        conversation = self._conversation(command.conversation_id)
        if conversation is None or conversation.state != State.QUEUED:
            self.after.append(lambda: command.refuse(waits=None, doubtful=False))
            return
        waits = work_item_of(conversation, self.openings.known_to(conversation.customer_id))
        if self._is_for_another(waits, command):
            self.after.append(lambda: command.refuse(waits=waits, doubtful=False))
        elif (agent.bot and conversation.human_wanted) or not await agents.take(
            uow.connection, tenant, agent.agent_id, now=self.now
        ):
            self.after.append(lambda: command.refuse(waits=waits, doubtful=True))
        else:
            self._give(conversation, agent)

    def _is_for_another(self, waits: WorkItem, command: Propose) -> bool:
        if command.agent.agent_id in waits.known_to or waits.known_to <= command.item.known_to:
            return False
        return any(self._with.router.may_give(waits, each) for each in waits.known_to)

    async def accept(self, uow: UnitOfWork, command: Accept) -> Conversation:
        """Give a conversation to the agent who accepted its offer.

        Raises NotFound (OFFER_NOT_FOUND) when it doesn't wait any more, FailedPrecondition (AGENT_UNAVAILABLE).
        """
        agent = command.agent
        conversation = self._conversation(command.conversation_id)
        if conversation is None or conversation.state != State.QUEUED:
            raise domain.agents.offer_not_found(command.conversation_id)
        if not await agents.take(uow.connection, agent.tenant, agent.agent_id, now=self.now):
            raise domain.agents.agent_has_no_room(agent.agent_id)
        self._give(conversation, agent)
        return conversation

    def _give(self, conversation: Conversation, agent: Agent) -> None:
        """Give a conversation to an agent whose row has counted it already."""
        tenant = agent.tenant
        self.openings.gave(conversation.customer_id, agent.agent_id)
        self._altered.append((conversation, conversation.version))
        changes = domain.conversations.assign(
            conversation, agent_id=agent.agent_id, bot=agent.bot, now=self.now
        )
        by = Actor.system(tenant)
        # The trace is the one in which the conversation was opened.
        on = Occasion(self._with.ids.uuid7(), self.now, by, conversation.traceparent)
        self._events.append(events.conversation_assigned(on, conversation, changes))
        METRICS.conversations_assigned.inc()
        conversation_id = conversation.conversation_id
        self.after.append(
            lambda: self._with.router.proposal_taken(tenant, conversation_id, agent.agent_id)
        )
        assigned = conversation.copy()
        batch = views.frames.conversation_push(assigned)
        users = participants(conversation)
        self.after.append(lambda: self._with.deliver(users, batch))
        self.after.append(lambda: self._with.introduce(assigned))
        greeting = self._append(
            conversation,
            by,
            f"greeting-{conversation.version}",
            views.content.text_content(
                domain.conversations.greeting(agent.display_name or agent.agent_id)
            ),
            conversation.traceparent,
        )
        self._push_message(greeting)

    # ---------------------------------------------------------------------------------------- end

    async def append_to_log(
        self, statements: Statements, moves: Steps, published: Mapping[int, int]
    ) -> bool:
        """Write a group that has only messages, and the heads; see messages.append_to_log."""
        items = [each.message for each in self.stored.values()]
        return await messages.append_to_log(statements, items, moves, published)

    async def flush(self, uow: UnitOfWork) -> list[DomainEvent]:
        """Write everything but the heads; return the events."""
        await self.openings.flush(uow)
        if self.opened:
            await conversations.add(uow.connection, [self.touched[each] for each in self.opened])
        for conversation, old_version in self._altered:
            if conversation.conversation_id in self.opened:
                continue  # it was inserted in its present state
            if not await conversations.save(uow.connection, conversation, old_version=old_version):
                raise Unavailable("a conversation was changed by somebody else")
        await self._changes.flush(uow)
        await messages.append(uow, [each.message for each in self.stored.values()])
        return [*self.openings.events, *self._events]
