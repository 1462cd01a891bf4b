"""A group: what one transaction of the writer does. Nothing in it touches memory before the commit."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Protocol

from opentelemetry.trace import Span

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_chat import domain, events, views
from deskwire_chat.domain.actors import Actor, ActorRole
from deskwire_chat.domain.agents import Agent
from deskwire_chat.domain.attachments import Attachment
from deskwire_chat.domain.conversations import Conversation, State
from deskwire_chat.domain.messages import Kind, Message
from deskwire_chat.domain.work import work_item_of
from deskwire_chat.events import Occasion
from deskwire_chat.log import codec
from deskwire_chat.log.commands import (
    Accept,
    Assign,
    Deliver,
    Store,
    Stored,
    participants,
)
from deskwire_chat.log.memory import Known
from deskwire_chat.log.openings import Visitors
from deskwire_chat.routing.router import Router
from deskwire_chat.store import agents, attachments, conversations, messages
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


def _again(command: Store, earlier: Stored) -> Stored:
    """Return what a repeated Send was answered the first time. Raises AlreadyExists for another content."""
    # What was changed since can't be compared with what was sent.
    if earlier.message.body != command.body and not earlier.message.changed_at:
        raise AlreadyExists(
            f"client_msg_id {command.client_msg_id!r} was used with another content",
            reason=reasons.ERROR_REASON_CLIENT_MSG_ID_REUSED,
        )
    METRICS.messages_duplicate.inc()
    return replace(earlier, duplicate=True)


class Tools(Protocol):
    """What a group works with (writer.ShardWriter)."""

    ids: Ids
    router: Router
    deliver: Deliver
    introduce: Callable[[Conversation], None]
    region: str


class Group:
    """One transaction, built command by command; `after` is what `finish` does when it was committed."""

    def __init__(
        self, tools: Tools, partitions: Mapping[int, Partition], known: Known, now: int
    ) -> None:
        self.now = now
        self.heads: dict[int, int] = {}
        self.stored: dict[SentKey, Stored] = {}
        self.touched: dict[str, Conversation] = {}
        self.visitors = Visitors(tools.ids, now, region=tools.region)
        self.after: list[Callable[[], None]] = []
        self.spans: list[Span] = []
        self._tools = tools
        self._partitions = partitions
        self._known = known
        self.opened: set[str] = set()
        self._altered: list[tuple[Conversation, int]] = []
        self._events: list[DomainEvent] = []
        self._targets: dict[tuple[str, int], Message] = {}
        self._changed: dict[tuple[str, int], Message] = {}
        self._attachments: dict[str, Attachment] = {}
        self._carried: list[Attachment] = []
        self._discarded: list[tuple[str, int]] = []

    def finish(self) -> None:
        """Do what waited for the commit; once.

        What waits knows the group. Kept, every group would be a cycle, and all its messages work for the collector.
        """
        after, self.after = self.after, []
        for each in after:
            each()

    # ------------------------------------------------------------------------------------ messages

    def store(self, command: Store) -> Stored:
        """Give a message its place, or return the one it has. Raises the domain's refusals."""
        stored = self._place(command)
        self.after.append(lambda: command.reply(stored))
        if not stored.duplicate:
            self._push_message(stored, without=command.line)
        return stored

    def _place(self, command: Store) -> Stored:
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
        # Before a conversation is opened for it.
        carried = self._carry(command) if command.kind == Kind.ATTACHMENT else None
        if conversation is None:
            if command.kind not in {Kind.TEXT, Kind.ATTACHMENT}:
                raise domain.conversations.conversation_not_found(command.conversation_id)
            conversation = self._open(command, traceparent)
        target = self._target(command) if command.target_seq else None
        stored = self._append(
            conversation, command.who, command.client_msg_id, command.body, traceparent, command
        )
        if target is not None:
            self._change(target, command)
        if carried is not None:
            item = domain.attachments.sent(carried, stored.message.seq)
            self._attachments[item.attachment_id] = item
            self._carried.append(item)
        return stored

    async def load_targets(self, uow: UnitOfWork, commands: Iterable[Store | Assign]) -> None:
        """Read the messages that edits and redactions are about, and the attachments that are sent."""
        special = [each for each in commands if isinstance(each, Store) and each.kind != Kind.TEXT]
        if not special:
            return
        places = {(each.conversation_id, each.target_seq) for each in special if each.target_seq}
        if places:
            self._targets = await messages.at(uow.connection, sorted(places))
        files = {
            views.content.reference_of(each.body).attachment_id
            for each in special
            if each.kind == Kind.ATTACHMENT
        }
        if files:
            self._attachments = await attachments.get_many(uow.connection, sorted(files))

    def _carry(self, command: Store) -> Attachment:
        said = views.content.reference_of(command.body)
        return domain.attachments.check_may_send(
            self._attachments.get(said.attachment_id), said, command.conversation_id, command.who
        )

    def _target(self, command: Store) -> Message:
        place = command.conversation_id, command.target_seq
        # It may be of this group, too.
        found = self._targets.get(place) or next(
            (
                each.message
                for each in self.stored.values()
                if (each.message.conversation_id, each.message.seq) == place
            ),
            None,
        )
        return domain.messages.check_may_change(
            found, command.kind, command.target_seq, command.who
        )

    def _change(self, target: Message, command: Store) -> None:
        """History shows a message as it is now; a redaction wipes its edits, too."""
        target.changed_at = self.now
        if command.kind == Kind.EDIT:
            target.body = views.content.edited(command.body)
        else:
            if target.kind == Kind.ATTACHMENT:
                self._discarded.append((target.conversation_id, target.seq))
            target.body, target.kind = views.content.REDACTED, Kind.REDACTED
            for each in self.stored.values():
                edit = each.message
                if (edit.kind, edit.conversation_id, edit.target_seq) == (
                    Kind.EDIT,
                    target.conversation_id,
                    target.seq,
                ):
                    edit.body, edit.kind = views.content.REDACTED, Kind.REDACTED
                    edit.changed_at = self.now
        if (target.conversation_id, target.seq) in self._targets:
            self._changed[target.conversation_id, target.seq] = target

    def _append(
        self,
        conversation: Conversation,
        who: Actor,
        client_msg_id: str,
        body: bytes,
        traceparent: str,
        command: Store | None = None,
    ) -> Stored:
        number = conversation.partition
        head = self.heads.get(number, self._partitions[number].head) + 1
        self.heads[number] = head
        conversation.head_seq += 1
        item = Message(
            message_id=self._tools.ids.uuid7(),
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
            # The visitor comes first.
            told, users = users[:1], users[1:]
            hidden = Stored.of(replace(stored.message, body=views.content.WITHHELD), stored.epoch)
            withheld = codec.message_push(hidden.encoded, stored.epoch)
            self.after.append(lambda: self._tools.deliver(told, withheld))
        self.after.append(lambda: self._tools.deliver(users, batch, without=without))

    # ------------------------------------------------------------------------------- conversations

    def _conversation(self, conversation_id: str) -> Conversation | None:
        """The conversation as this group has it: a copy that may be changed."""
        found = self.touched.get(conversation_id)
        if found is None and (known := self._known.conversations.get(conversation_id)) is not None:
            found = self.touched[conversation_id] = known.copy()
        return found

    def _open(self, command: Store, traceparent: str) -> Conversation:
        who = command.who
        if who.role != ActorRole.VISITOR:
            raise domain.conversations.conversation_not_found(command.conversation_id)
        customer = self.visitors.customer_of(
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
        on = Occasion(self._tools.ids.uuid7(), self.now, who, traceparent)
        self._events.append(events.conversation_opened(on, conversation, customer))
        item = work_item_of(conversation)
        self.after.append(lambda: self._tools.router.enqueue(item))
        return conversation

    async def assign(self, uow: UnitOfWork, command: Assign) -> None:
        """Give a conversation to the agent whom routing proposes, if both are still free."""
        tenant, agent = command.item.tenant, command.agent
        conversation = self._conversation(command.conversation_id)
        waits = conversation is not None and conversation.state == State.QUEUED
        if (
            conversation is None
            or not waits
            or (agent.bot and conversation.human_wanted)
            or not await agents.take(uow.connection, tenant, agent.agent_id, now=self.now)
        ):
            again = work_item_of(conversation) if conversation is not None and waits else None
            self.after.append(
                lambda: self._tools.router.proposal_refused(
                    tenant, command.conversation_id, agent.agent_id, waits=again, doubtful=waits
                )
            )
            return
        self._give(conversation, agent)

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
        """The agent's row has counted it."""
        tenant = agent.tenant
        self._altered.append((conversation, conversation.version))
        changes = domain.conversations.assign(
            conversation, agent_id=agent.agent_id, bot=agent.bot, now=self.now
        )
        by = Actor.system(tenant)
        # The trace is that of the opening.
        on = Occasion(self._tools.ids.uuid7(), self.now, by, conversation.traceparent)
        self._events.append(events.conversation_assigned(on, conversation, changes))
        METRICS.conversations_assigned.inc()
        conversation_id = conversation.conversation_id
        self.after.append(
            lambda: self._tools.router.proposal_taken(tenant, conversation_id, agent.agent_id)
        )
        assigned = conversation.copy()
        batch = views.frames.conversation_push(assigned)
        users = participants(conversation)
        self.after.append(lambda: self._tools.deliver(users, batch))
        self.after.append(lambda: self._tools.introduce(assigned))
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
        """Write a group of nothing but messages, and the heads; see messages.append_to_log."""
        items = [each.message for each in self.stored.values()]
        return await messages.append_to_log(statements, items, moves, published)

    async def flush(self, uow: UnitOfWork) -> list[DomainEvent]:
        """Write everything but the heads; return the events."""
        await self.visitors.flush(uow)
        if self.opened:
            await conversations.add(uow.connection, [self.touched[each] for each in self.opened])
        for conversation, old_version in self._altered:
            if conversation.conversation_id in self.opened:
                continue  # inserted as it is now
            if not await conversations.save(uow.connection, conversation, old_version=old_version):
                raise Unavailable("a conversation was changed by somebody else")
        if self._changed:
            await messages.change(uow, list(self._changed.values()))
            for each in self._changed.values():
                if each.kind == Kind.REDACTED:
                    await messages.wipe_edits(uow, each)
        if self._carried and not await attachments.sent(uow, self._carried):
            raise Unavailable("an attachment was removed meanwhile")
        if self._discarded:
            await attachments.discard(uow, self._discarded, now=self.now)
        await messages.append(uow, [each.message for each in self.stored.values()])
        return [*self.visitors.events, *self._events]
