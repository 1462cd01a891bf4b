"""The writer: every message, opening, assignment and end of a conversation goes through here, in groups.

Rules (docs/architecture.md, "The message path"): a group is one transaction, which moves the heads of its partitions
under their terms (the fence); dedupe comes before numbering; nothing is acknowledged before the commit; whatever goes
wrong, memory is thrown away and read again, and a refusal that is temporary holds the line of its connection.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol

from opentelemetry.trace import Span
from sqlalchemy.exc import SQLAlchemyError

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_chat import domain, events, views
from deskwire_chat.domain import (
    PARTITIONS,
    ActorRole,
    Change,
    Conversation,
    Customer,
    Message,
    State,
    Writer,
    partition_of,
)
from deskwire_chat.routing import Router
from deskwire_chat.shard import codec
from deskwire_chat.shard.visitors import Visitors
from deskwire_chat.store import agents, conversations, messages, partitions
from deskwire_chat.store.messages import SentKey
from deskwire_chat.store.partitions import Partition
from deskwire_common import telemetry
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import (
    AlreadyExists,
    DeskwireError,
    Internal,
    ResourceExhausted,
    Unavailable,
)
from deskwire_common.events import DomainEvent
from deskwire_common.ids import Ids
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_common.outbox import Outbox

GROUP: Final = 500
"""Commands per transaction at the most."""
QUEUE: Final = 20_000
"""Commands that may wait per lane; more are refused with OVERLOADED."""
CACHED: Final = 50_000
"""Conversations in memory."""
LEASE_SECONDS: Final = 15.0
_ATTEMPTS: Final = 3
_RETRY_AFTER: Final = 1.0

UserKey = tuple[str, int, str]
"""Tenant, role, subject: who gets pushes."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A committed message with its encoded parts."""

    message: Message
    epoch: int
    encoded: bytes
    encoded_actor: bytes
    encoded_time: bytes
    duplicate: bool = False


Reply = Callable[[Stored | DeskwireError], None]


@dataclass(slots=True)
class Store:
    """A message to store. `line` is the connection it came on: it holds the line, and gets no push of its own."""

    who: Writer
    conversation_id: str
    client_msg_id: str
    body: bytes
    reply: Reply
    traceparent: str = ""
    line: Hashable = None


@dataclass(slots=True)
class Assign:
    """Routing's proposal."""

    tenant: str
    conversation_id: str
    agent_id: str
    agent_name: str


@dataclass(slots=True)
class Alter:
    """A change of one conversation in a transaction of its own: close, transfer.

    `work` gets the transaction and a copy of the conversation (None: there is none), changes the copy and writes
    everything but the conversation. Its result goes to `future` after the commit.
    """

    conversation_id: str
    work: Callable[[UnitOfWork, Conversation | None], Awaitable[Any]]
    future: asyncio.Future[Any]


Command = Store | Assign | Alter


class NotOwner(Unavailable):
    """Another process has taken a partition over: this one must stop writing."""

    default_reason = reasons.ERROR_REASON_NOT_OWNER


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


class _Entry:
    """A conversation in memory, and the keys of all its messages."""

    __slots__ = ("conversation", "sent")

    def __init__(self, conversation: Conversation, sent: set[SentKey]) -> None:
        self.conversation = conversation
        self.sent = sent


@dataclass(slots=True)
class _Group:
    """What one transaction does. Nothing in it touches memory before the commit."""

    now: int
    heads: dict[int, int]
    visitors: Visitors
    published: dict[int, int] = field(default_factory=dict)
    touched: dict[str, Conversation] = field(default_factory=dict)
    opened: list[tuple[Conversation, Customer]] = field(default_factory=list)
    altered: list[tuple[Conversation, int]] = field(default_factory=list)
    stored: dict[SentKey, Stored] = field(default_factory=dict)
    events: list[DomainEvent] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    after: list[Callable[[], None]] = field(default_factory=list)


def participants(conversation: Conversation) -> list[UserKey]:
    """Who is told of what happens in a conversation."""
    users: list[UserKey] = [(conversation.tenant, ActorRole.VISITOR, conversation.visitor_id)]
    if conversation.agent_id:
        users.append((conversation.tenant, ActorRole.AGENT, conversation.agent_id))
    return users


class ShardWriter:
    """The single writer of the conversations of all partitions that this process owns."""

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        router: Router,
        *,
        ids: Ids,
        clock: Clock,
        owner: str,
        deliver: Deliver,
        log: Log,
        region: str = "",
    ) -> None:
        """`owner` names the place of this process (its pod): its next life takes over at once.

        `region` is how mobile numbers of visitors' tokens are read that have no leading +.
        """
        self._db = db
        self._outbox = outbox
        self._router = router
        self._ids = ids
        self._clock = clock
        self._owner = owner
        self._deliver = deliver
        self._log = log
        self._region = region
        self._cache: OrderedDict[str, _Entry] = OrderedDict()
        self._partitions: list[Partition] = []
        self._stale = False
        self._held: dict[tuple[Hashable, str], str] = {}
        # SQLite has one writer anyway.
        lanes = 1 if db.dialect == "sqlite" else 2
        self._lanes: list[deque[Command]] = [deque() for _ in range(lanes)]
        self._wakes = [asyncio.Event() for _ in range(lanes)]
        self._closing = False

    # ---------------------------------------------------------------------------------- ownership

    async def claim(self) -> list[Partition]:
        """Become the owner of all partitions; waits for the lease of another owner to end."""
        while True:
            async with self._db.transaction() as uow:
                found = await partitions.load(uow.connection)
                if len(found) < PARTITIONS:
                    await partitions.create_missing(uow.connection, [each.id for each in found])
                    await uow.commit()
                    continue
                now = self._now()
                others = [
                    each
                    for each in found
                    if each.owner not in {"", self._owner} and each.lease_until > now
                ]
                lease = now + int(LEASE_SECONDS * 1_000_000)
                if not others and all(
                    [
                        await partitions.claim(
                            uow.connection, each, owner=self._owner, lease_until=lease
                        )
                        for each in found
                    ]
                ):
                    await uow.commit()
                    self._partitions = [
                        replace(each, term=each.term + 1, owner=self._owner) for each in found
                    ]
                    return self._partitions
            get_logger().info("waiting_for_partitions", owner=others[0].owner if others else "")
            await asyncio.sleep(1.0)

    async def renew(self) -> None:
        """Keep the lease until cancelled. Raises NotOwner when it was taken away."""
        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            until = self._now() + int(LEASE_SECONDS * 1_000_000)

            try:
                for number in range(PARTITIONS):
                    if not await self._db.run(partial(self._renew, number, until)):
                        raise NotOwner(f"partition {number} has another owner")
            except NotOwner:
                raise
            except Unavailable as error:
                get_logger().warning("lease_not_renewed", error=str(error))

    async def _renew(self, number: int, until: int, uow: UnitOfWork) -> bool:
        return await partitions.renew(uow.connection, number, owner=self._owner, lease_until=until)

    async def release(self) -> None:
        """Let another process take over at once."""

        async def work(uow: UnitOfWork) -> None:
            await partitions.release(uow.connection, owner=self._owner)

        await self._db.run(work)

    # ----------------------------------------------------------------------------------- commands

    def submit(self, command: Command) -> None:
        """Queue a command. Raises ResourceExhausted when too many wait, Unavailable when this process stops."""
        if self._closing:
            raise Unavailable(
                "the server is stopping; connect again",
                reason=reasons.ERROR_REASON_SHUTTING_DOWN,
                retry_after=_RETRY_AFTER,
            )
        number = partition_of(command.conversation_id) % len(self._lanes)
        if len(self._lanes[number]) >= QUEUE and not isinstance(command, Assign):
            error = ResourceExhausted("too many messages wait to be stored", retry_after=0.5)
            if isinstance(command, Store):
                self._hold(command)
            raise error
        self._lanes[number].append(command)
        self._wakes[number].set()

    def propose(self, *, tenant: str, conversation_id: str, agent_id: str, agent_name: str) -> None:
        """Queue routing's proposal (routing.Assign)."""
        if not self._closing:
            self.submit(Assign(tenant, conversation_id, agent_id, agent_name))

    async def alter(
        self,
        conversation_id: str,
        work: Callable[[UnitOfWork, Conversation | None], Awaitable[Any]],
    ) -> Any:
        """Run `work` on a conversation in its own transaction, in the conversation's turn; see Alter."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.submit(Alter(conversation_id, work, future))
        return await future

    def forget_line(self, line: Hashable, conversation_ids: Iterable[str]) -> None:
        """A connection is gone: what it held is free."""
        for conversation_id in conversation_ids:
            self._held.pop((line, conversation_id), None)

    async def run(self) -> None:
        """Write until cancelled. Raises NotOwner when another process has taken over."""
        async with asyncio.TaskGroup() as group:
            for lane, wake in zip(self._lanes, self._wakes, strict=True):
                group.create_task(self._run_lane(lane, wake))
            group.create_task(self.renew())

    async def drain(self) -> None:
        """Take no more commands, and finish those that wait."""
        self._closing = True
        while any(self._lanes):
            await asyncio.sleep(0.01)

    async def _run_lane(self, lane: deque[Command], wake: asyncio.Event) -> None:
        while True:
            await wake.wait()
            wake.clear()
            while lane:
                group: list[Store | Assign] = []
                while lane and len(group) < GROUP and not isinstance(lane[0], Alter):
                    command = lane.popleft()
                    assert not isinstance(command, Alter)  # noqa: S101 - for the type checker
                    group.append(command)
                if group:
                    await self._write(group)
                elif isinstance(alter := lane.popleft(), Alter):
                    await self._alter(alter)

    # -------------------------------------------------------------------------------------- groups

    async def _write(self, commands: list[Store | Assign]) -> None:
        error: Exception = Internal("nothing was tried")
        for attempt in range(_ATTEMPTS):
            if attempt:
                self._forget(commands)
                await asyncio.sleep(0.02 * 4**attempt)
            try:
                group = await self._transact(commands)
            except NotOwner:
                raise
            except (DeskwireError, SQLAlchemyError, OSError) as caught:
                get_logger().warning(
                    "group_failed", attempt=attempt, error=type(caught).__name__, size=len(commands)
                )
                self._stale = True
                error = caught
                continue
            for after in group.after:
                after()
            return
        self._forget(commands)
        if not isinstance(error, DeskwireError) and len(commands) > 1:
            # One of them can't be stored: each by itself, so that it fails alone.
            for command in commands:
                await self._write([command])
            return
        self._refuse(commands, error)

    def _refuse(self, commands: list[Store | Assign], cause: Exception) -> None:
        for command in commands:
            if isinstance(command, Assign):
                self._router.refused(
                    command.tenant,
                    command.conversation_id,
                    command.agent_id,
                    waits=self._now(),
                    doubtful=True,
                )
                continue
            if isinstance(cause, DeskwireError):
                self._hold(command)
                refusal: DeskwireError = Unavailable(
                    "the message could not be stored now; send it again", retry_after=_RETRY_AFTER
                )
            else:
                get_logger().error(
                    "message_refused", conversation_id=command.conversation_id, exc_info=cause
                )
                refusal = Internal("the message could not be stored; see the server's log")
            self._answer_refused(command, refusal)

    def _hold(self, command: Store) -> None:
        if command.line is not None:
            self._held.setdefault((command.line, command.conversation_id), command.client_msg_id)

    @staticmethod
    def _answer_refused(command: Store, error: DeskwireError) -> None:
        METRICS.messages_refused.labels(error.reason_name).inc()
        command.reply(error)

    def _forget(self, commands: Sequence[Command]) -> None:
        for command in commands:
            self._cache.pop(command.conversation_id, None)
        self._stale = True

    async def _transact(self, commands: list[Store | Assign]) -> _Group:
        found = await self._prepare(commands)
        started = self._clock.monotonic()
        now = self._now()
        group = _Group(now=now, heads={}, visitors=Visitors(self._ids, now, region=self._region))
        async with self._db.transaction() as uow:
            await group.visitors.load(uow, self._openers(commands))
            for command in commands:
                if isinstance(command, Assign):
                    await self._assign(uow, group, command)
                else:
                    self._store(group, command, found)
            if group.heads:
                await self._flush(uow, group)
                await uow.commit()
        if group.heads:
            METRICS.commit_group_size.observe(len(group.stored))
            METRICS.commit_seconds.observe(self._clock.monotonic() - started)
            self._committed(group)
        return group

    async def _prepare(self, commands: Sequence[Command]) -> dict[SentKey, Message]:
        """Bring heads and conversations into memory; return the stored messages that are sent again."""
        if self._stale:
            await self._reload()
        missing = {c.conversation_id for c in commands}.difference(self._cache)
        again = [
            _key(c)
            for c in commands
            if isinstance(c, Store)
            and (entry := self._cache.get(c.conversation_id)) is not None
            and _key(c) in entry.sent
        ]
        if not missing and not again:
            return {}
        async with self._db.read() as connection:
            if missing:
                loaded = await conversations.get_many(connection, list(missing))
                sent: dict[str, set[SentKey]] = {each.conversation_id: set() for each in loaded}
                for key in await messages.sent_keys(connection, list(sent)) if sent else ():
                    sent[key[0]].add(key)
                for conversation in loaded:
                    self._remember(conversation, sent[conversation.conversation_id])
                again += [
                    _key(c)
                    for c in commands
                    if isinstance(c, Store) and _key(c) in sent.get(c.conversation_id, ())
                ]
            return await messages.find_sent(connection, again) if again else {}

    async def _reload(self) -> None:
        async with self._db.read() as connection:
            found = await partitions.load(connection)
        mine = {each.id: each.term for each in self._partitions}
        if any(each.term != mine.get(each.id) for each in found):
            raise NotOwner("another process has taken over")
        self._partitions = found
        self._stale = False

    def _remember(self, conversation: Conversation, sent: set[SentKey]) -> None:
        self._cache[conversation.conversation_id] = _Entry(conversation, sent)
        self._cache.move_to_end(conversation.conversation_id)
        if len(self._cache) > CACHED:
            self._cache.popitem(last=False)

    def _openers(self, commands: Sequence[Store | Assign]) -> list[Writer]:
        """The visitors who may open a conversation in this group."""
        return [
            c.who
            for c in commands
            if isinstance(c, Store)
            and c.who.role == ActorRole.VISITOR
            and c.conversation_id not in self._cache
        ]

    def _conversation(self, group: _Group, conversation_id: str) -> Conversation | None:
        """The conversation as this group has it: a copy that may be changed."""
        found = group.touched.get(conversation_id)
        if found is None and (entry := self._cache.get(conversation_id)) is not None:
            self._cache.move_to_end(conversation_id)
            found = group.touched[conversation_id] = replace(entry.conversation)
        return found

    def _store(self, group: _Group, command: Store, found: dict[SentKey, Message]) -> None:
        held = self._held.get((command.line, command.conversation_id))
        if held is not None and held != command.client_msg_id:
            refusal = ResourceExhausted(
                f"send {held!r} again first: it was refused for now, and order is kept",
                reason=reasons.ERROR_REASON_LINE_HELD,
                retry_after=_RETRY_AFTER,
            )
            group.after.append(lambda: self._answer_refused(command, refusal))
            return
        try:
            stored = self._place(group, command, found)
        except DeskwireError as error:
            refused = error
            group.after.append(lambda: self._answer_refused(command, refused))
            stored = None
        if held is not None:
            group.after.append(lambda: self.forget_line(command.line, [command.conversation_id]))
        if stored is None:
            return
        group.after.append(lambda: command.reply(stored))
        if not stored.duplicate:
            self._push_message(group, stored, without=command.line)

    def _place(self, group: _Group, command: Store, found: dict[SentKey, Message]) -> Stored:
        key = _key(command)
        earlier = group.stored.get(key)
        conversation = self._conversation(group, command.conversation_id)
        if conversation is not None and not domain.may_see(conversation, command.who):
            raise domain.conversation_not_found(command.conversation_id)
        if earlier is None and key in found and conversation is not None:
            earlier = _encoded(found[key], conversation.epoch)
        if earlier is not None:
            if earlier.message.body != command.body:
                raise AlreadyExists(
                    f"client_msg_id {command.client_msg_id!r} was used with another content",
                    reason=reasons.ERROR_REASON_CLIENT_MSG_ID_REUSED,
                )
            METRICS.messages_duplicate.inc()
            return replace(earlier, duplicate=True)
        traceparent = ""
        if command.traceparent:
            span = telemetry.start_span("chat.store", command.traceparent)
            group.spans.append(span)
            traceparent = telemetry.traceparent_of(span) or command.traceparent
        if conversation is None:
            conversation = self._open(group, command, traceparent)
        else:
            domain.check_may_write(conversation, command.who)
        who = command.who
        return self._append(
            group, conversation, who, command.client_msg_id, command.body, traceparent
        )

    def _open(self, group: _Group, command: Store, traceparent: str) -> Conversation:
        who = command.who
        if who.role != ActorRole.VISITOR:
            raise domain.conversation_not_found(command.conversation_id)
        customer = group.visitors.customer_of(
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
            created_at=group.now,
            assigned_at=0,
            closed_at=0,
            traceparent=traceparent,
        )
        group.touched[conversation.conversation_id] = conversation
        group.opened.append((conversation, customer))
        group.events.append(
            events.conversation_opened(
                conversation, customer, event_id=self._ids.uuid7(), by=who, traceparent=traceparent
            )
        )
        tenant, created_at = who.tenant, group.now
        group.after.append(lambda: self._router.opened(tenant, command.conversation_id, created_at))
        return conversation

    def _append(
        self,
        group: _Group,
        conversation: Conversation,
        who: Writer,
        client_msg_id: str,
        body: bytes,
        traceparent: str,
    ) -> Stored:
        number = conversation.partition
        head = group.heads.get(number, self._partitions[number].head) + 1
        group.heads[number] = head
        conversation.head_seq += 1
        item = Message(
            message_id=self._ids.uuid7(),
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
            created_at=group.now,
            traceparent=traceparent,
        )
        stored = _encoded(item, conversation.epoch)
        group.stored[_key_of(item)] = stored
        METRICS.messages_stored.labels(ActorRole(who.role).name.lower()).inc()
        return stored

    def _push_message(self, group: _Group, stored: Stored, *, without: Hashable = None) -> None:
        users = participants(group.touched[stored.message.conversation_id])
        batch = codec.message_push(stored.encoded, stored.epoch)
        group.after.append(lambda: self._deliver(users, batch, without=without))

    async def _assign(self, uow: UnitOfWork, group: _Group, command: Assign) -> None:
        conversation = self._conversation(group, command.conversation_id)
        waits = conversation is not None and conversation.state == State.QUEUED
        if (
            conversation is None
            or not waits
            or not await agents.take(
                uow.connection, command.tenant, command.agent_id, now=group.now
            )
        ):
            created_at = conversation.created_at if conversation is not None and waits else None
            group.after.append(
                lambda: self._router.refused(
                    command.tenant,
                    command.conversation_id,
                    command.agent_id,
                    waits=created_at,
                    doubtful=waits,
                )
            )
            return
        group.altered.append((conversation, conversation.version))
        changes = domain.assign(conversation, agent_id=command.agent_id, now=group.now)
        by = Writer.system(command.tenant)
        group.events.append(
            events.conversation_assigned(conversation, changes, event_id=self._ids.uuid7(), by=by)
        )
        METRICS.conversations_assigned.inc()
        group.after.append(lambda: self._router.assigned(command.tenant, command.agent_id))
        batch = views.conversation_push(replace(conversation))
        users = participants(conversation)
        group.after.append(lambda: self._deliver(users, batch))
        greeting = self._append(
            group,
            conversation,
            by,
            f"greeting-{conversation.version}",
            views.text_content(domain.greeting(command.agent_name)),
            conversation.traceparent,
        )
        self._push_message(group, greeting)

    async def _flush(self, uow: UnitOfWork, group: _Group) -> None:
        steps = {
            number: (self._partitions[number].term, self._partitions[number].head, head)
            for number, head in group.heads.items()
        }
        group.published = self._log.published(steps)
        if not await partitions.fence(uow.connection, steps, group.published):
            await self._lost(uow)
        await group.visitors.flush(uow)
        if group.opened:
            await conversations.add(
                uow.connection, [self._as_opened(group, each) for each, _ in group.opened]
            )
        for conversation, old_version in group.altered:
            if any(conversation is each for each, _ in group.opened):
                continue  # inserted as it is now
            if not await conversations.save(uow.connection, conversation, old_version=old_version):
                raise Unavailable("a conversation was changed by somebody else")
        await messages.append(uow, [each.message for each in group.stored.values()])
        await self._outbox.add(uow, [*group.visitors.events, *group.events])

    @staticmethod
    def _as_opened(group: _Group, conversation: Conversation) -> Conversation:
        return group.touched[conversation.conversation_id]

    async def _lost(self, uow: UnitOfWork) -> None:
        """The fence failed: our term is over, or only our memory of a head is wrong."""
        found = await partitions.load(uow.connection)
        mine = {each.id: each.term for each in self._partitions}
        if any(each.term != mine.get(each.id) for each in found):
            raise NotOwner("another process has taken over")
        raise Unavailable("the heads in memory were not those of the database")

    def _committed(self, group: _Group) -> None:
        for number, head in group.heads.items():
            self._partitions[number].head = head
            METRICS.partition_head.labels(str(number)).set(head)
        for conversation_id, conversation in group.touched.items():
            entry = self._cache.get(conversation_id)
            if entry is None:
                self._remember(conversation, set())
            else:
                entry.conversation = conversation
        for key in group.stored:
            if (entry := self._cache.get(key[0])) is not None:
                entry.sent.add(key)
        for span in group.spans:
            span.end()
        for customer, told in group.visitors.updated:
            agents_told = [(customer.tenant, int(ActorRole.AGENT), each) for each in told]
            self._deliver(agents_told, views.customer_push(customer))
        self._log.committed(list(group.stored.values()))
        self._log.saved(group.published)

    # -------------------------------------------------------------------------------------- alter

    async def _alter(self, command: Alter) -> None:
        try:
            await self._prepare([command])
            entry = self._cache.get(command.conversation_id)
            before = entry.conversation if entry is not None else None
            copy = replace(before) if before is not None else None
            async with self._db.transaction() as uow:
                if before is not None:
                    part = self._partitions[before.partition]
                    if not await partitions.fence(
                        uow.connection, {part.id: (part.term, part.head, part.head)}
                    ):
                        await self._lost(uow)
                result = await command.work(uow, copy)
                if copy is not None and before is not None and copy.version != before.version:
                    await conversations.save(uow.connection, copy, old_version=before.version)
                await uow.commit()
        except NotOwner as error:
            _fail(command.future, error)
            raise
        except Exception as error:  # noqa: BLE001 - it is the caller's
            if not isinstance(error, DeskwireError) or error.temporary:
                self._forget([command])
            _fail(command.future, error)
            return
        if (
            entry is not None
            and copy is not None
            and before is not None
            and copy.version != before.version
        ):
            entry.conversation = copy
            self._changed(before, copy)
        if not command.future.done():
            command.future.set_result(result)

    def _changed(self, before: Conversation, after: Conversation) -> None:
        users = dict.fromkeys([*participants(before), *participants(after)])
        self._deliver(users, views.conversation_push(after))
        tenant, conversation_id = after.tenant, after.conversation_id
        if before.agent_id != after.agent_id or after.state == State.CLOSED:
            self._router.closed(tenant, conversation_id, before.agent_id)
        if before.agent_id != after.agent_id and after.agent_id:
            self._router.gained(tenant, conversation_id, after.agent_id)
        if after.state == State.QUEUED:
            self._router.opened(tenant, conversation_id, after.created_at)

    def _now(self) -> int:
        return to_micros(self._clock.now())


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _key(command: Store) -> SentKey:
    return (
        command.conversation_id,
        int(command.who.role),
        command.who.subject,
        command.client_msg_id,
    )


def _key_of(item: Message) -> SentKey:
    return item.conversation_id, item.role, item.subject, item.client_msg_id


def _encoded(item: Message, epoch: int) -> Stored:
    actor = codec.actor(item.role, item.subject, item.name)
    time = codec.timestamp(item.created_at)
    return Stored(item, epoch, codec.message(item, actor, time), actor, time)


__all__ = [
    "Alter",
    "Assign",
    "Change",
    "NotOwner",
    "ShardWriter",
    "Store",
    "Stored",
    "UserKey",
    "participants",
]
