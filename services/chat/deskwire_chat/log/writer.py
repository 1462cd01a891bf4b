"""The writer: every message, opening, assignment and end of a conversation goes through here, in groups.

Rules (docs/architecture.md, "The walk of a message"): a group is one transaction, which moves the heads of its
partitions under their terms (the fence); dedupe comes before numbering; nothing is acknowledged before the commit;
whatever goes wrong, memory is thrown away and read again, and a refusal that is temporary holds the line of its
connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Hashable,
    Iterable,
    Mapping,
    Sequence,
)
from functools import partial
from typing import Any, Final, cast

from sqlalchemy.exc import SQLAlchemyError

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_chat import views
from deskwire_chat.domain.actors import Actor, ActorRole
from deskwire_chat.domain.agents import Agent
from deskwire_chat.domain.conversations import Conversation, State, partition_of
from deskwire_chat.domain.messages import Kind
from deskwire_chat.domain.work import WorkItem, work_item_of
from deskwire_chat.log.commands import (
    Accept,
    Alter,
    Assign,
    Command,
    Deliver,
    Give,
    Log,
    Mark,
    NotOwner,
    Store,
    participants,
)
from deskwire_chat.log.group import Group
from deskwire_chat.log.memory import Known, Memory
from deskwire_chat.routing.router import Router
from deskwire_chat.shard.ownership import HeadsWrong, Ownership, steps
from deskwire_chat.store import conversations
from deskwire_chat.store.partitions import Partition
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database, Statements, UnitOfWork
from deskwire_common.errors import DeskwireError, Internal, ResourceExhausted, Unavailable
from deskwire_common.ids import Ids
from deskwire_common.lines import HeldLines, line_held
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_common.outbox import Outbox
from deskwire_common.pacing import Pace

GROUP: Final = 500
"""Commands per transaction at the most."""
QUEUE: Final = 20_000
"""Commands that may wait per lane; more are refused with OVERLOADED."""
_SPACING: Final = 0.025
_MANY: Final = 4
"""Transactions of so many commands are so many seconds apart: fewer, and each carries more."""
_FEW: Final = 100
"""So many commands of two lanes are written in one transaction, which costs less than two; more in two at once."""
_ATTEMPTS: Final = 3
_ALONE: Final = (Alter, Accept, Mark)
"""These aren't joined to groups."""
_RETRY_AFTER: Final = 1.0


class _Lane:
    """Commands of some partitions in their order, and the connection on which plain messages are written."""

    __slots__ = ("free", "pace", "queue", "statements", "wake")

    def __init__(self, statements: Statements | None) -> None:
        self.queue: deque[Command | Mark] = deque()
        self.wake = asyncio.Event()
        self.pace = Pace(linger=0.0, spacing=_SPACING, many=_MANY)
        self.statements = statements
        self.free = asyncio.Event()
        """Whether none of its commands is being written."""
        self.free.set()

    def put(self, command: Command | Mark) -> None:
        self.queue.append(command)
        self.wake.set()

    def may_join(self) -> bool:
        """Whether its next commands may be written with another lane's."""
        return self.free.is_set() and bool(self.queue) and not isinstance(self.queue[0], _ALONE)

    def begin(self, now: float) -> list[Store | Assign]:
        """Begin a round: the next commands that go into one transaction, none when the next has to be alone."""
        queue = self.queue
        self.free.clear()
        self.pace.began(now, len(queue))
        group: list[Store | Assign] = []
        while queue and len(group) < GROUP:
            command = queue[0]
            if isinstance(command, _ALONE):
                break
            queue.popleft()
            group.append(command)
        return group


class ShardWriter:
    """The single writer of the conversations of all partitions that this process owns."""

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        router: Router,
        ownership: Ownership,
        *,
        ids: Ids,
        clock: Clock,
        deliver: Deliver,
        introduce: Callable[[Conversation], None],
        log: Log,
        region: str = "",
    ) -> None:
        """`region` is how mobile numbers of visitors' tokens are read that have no leading +."""
        self._db = db
        self._outbox = outbox
        self.router = router
        self._ownership = ownership
        self.ids = ids
        self._clock = clock
        self.deliver = deliver
        self.introduce = introduce
        self._log = log
        self.region = region
        self.memory = Memory(db)
        self._held = HeldLines[tuple[Hashable, str]]()
        # SQLite has one writer anyway.
        lanes = 1 if db.dialect == "sqlite" else 2
        own = db.dialect == "postgresql"
        self._lanes = [_Lane(db.statements() if own else None) for _ in range(lanes)]
        self._closing = False

    # ----------------------------------------------------------------------------------- commands

    def submit(self, command: Command) -> None:
        """Queue a command.

        Raises NotOwner for another process's conversation, ResourceExhausted when too many wait, Unavailable when this
        process stops.
        """
        if self._closing:
            raise Unavailable(
                "the server is stopping; connect again",
                reason=reasons.ERROR_REASON_SHUTTING_DOWN,
                retry_after=_RETRY_AFTER,
            )
        partition = partition_of(command.conversation_id)
        term = self._ownership.term_of(partition)
        if not term or command.term not in {0, term}:
            raise NotOwner
        command.term = term
        lane = self._lane_of(partition)
        if len(lane.queue) >= QUEUE and not isinstance(command, Assign):
            error = ResourceExhausted("too many messages wait to be stored", retry_after=0.5)
            if isinstance(command, Store):
                self._hold(command)
            raise error
        lane.put(command)

    def propose(self, item: WorkItem, agent: Agent) -> None:
        """Queue routing's proposal (routing.Assign)."""
        if self._closing:
            return
        command = Assign(item, agent)
        try:
            self.submit(command)
        except NotOwner:
            # The next owner's routing has the conversation. Not within routing's own step.
            asyncio.get_running_loop().call_soon(self._not_ours, command)

    async def alter(
        self,
        conversation_id: str,
        work: Callable[[UnitOfWork, Conversation | None], Awaitable[Any]],
    ) -> Any:
        """Run `work` on a conversation in its own transaction, in the conversation's turn; see Alter."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.submit(Alter(conversation_id, work, future))
        return await future

    async def accept(
        self, item: WorkItem, agent: Agent, once: Callable[[UnitOfWork, Give], Awaitable[Any]]
    ) -> Any:
        """Give an agent the conversation whose offer they have claimed, in its turn; see Accept."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        command = Accept(item, agent, once=once, future=future)
        try:
            self.submit(command)
        except DeskwireError as error:
            self._not_accepted(command, error)
        return await future

    def forget_line(self, line: Hashable, conversation_ids: Iterable[str]) -> None:
        """A connection is gone: what it held is free."""
        for conversation_id in conversation_ids:
            self._held.release((line, conversation_id))

    async def finish(self) -> None:
        """Return when everything is stored or refused that was queued before."""
        marks = [Mark(asyncio.get_running_loop().create_future()) for _ in self._lanes]
        for lane, mark in zip(self._lanes, marks, strict=True):
            lane.put(mark)
        await asyncio.gather(*(mark.future for mark in marks))

    def forget_partitions(self, numbers: Collection[int]) -> None:
        """These are another owner's now, or were until now."""
        self.memory.forget_partitions(numbers)
        for line in [each for each in self._held if partition_of(each[1]) in numbers]:
            self._held.release(line)

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(self._run_lane(lane))

    async def drain(self) -> None:
        """Take no more commands, and finish those that wait."""
        self._closing = True
        while any(lane.queue for lane in self._lanes):
            await asyncio.sleep(0.01)

    def _lane_of(self, partition: int) -> _Lane:
        return self._lanes[partition % len(self._lanes)]

    async def _run_lane(self, lane: _Lane) -> None:
        try:
            await self._serve(lane)
        finally:
            if lane.statements is not None:
                await lane.statements.close()

    async def _serve(self, lane: _Lane) -> None:
        loop = asyncio.get_running_loop()
        queue = lane.queue
        while True:
            await lane.wake.wait()
            lane.wake.clear()
            while queue:
                if len(queue) < GROUP and (pause := lane.pace.pause(loop.time())) > 0:
                    await asyncio.sleep(pause)
                if not lane.free.is_set():
                    await lane.free.wait()
                elif queue:
                    await self._next(lane)

    async def _next(self, lane: _Lane) -> None:
        """Write a lane's next group, or the command that has to be alone."""
        now = asyncio.get_running_loop().time()
        others = self._joining(lane)
        group = lane.begin(now)
        if not group:
            others = []
        for other in others:
            group += other.begin(now)
        try:
            if group:
                # Of both lanes always on the same connection: what serves it has its caches warm.
                await self._write(group, (self._lanes[0] if others else lane).statements)
            else:
                await self._alone(lane.queue.popleft())
        finally:
            for each in (lane, *others):
                each.free.set()

    def _joining(self, lane: _Lane) -> list[_Lane]:
        """Return the others whose commands are written with this one's: when what waits everywhere is little."""
        if sum(len(each.queue) for each in self._lanes) > _FEW:
            return []
        return [each for each in self._lanes if each is not lane and each.may_join()]

    async def _alone(self, command: Command | Mark) -> None:
        if isinstance(command, Alter):
            await self._alter(command)
        elif isinstance(command, Accept):
            await self._accept(command)
        elif isinstance(command, Mark) and not command.future.done():
            command.future.set_result(None)

    # -------------------------------------------------------------------------------------- groups

    async def _write(self, commands: list[Store | Assign], statements: Statements | None) -> None:
        error: Exception = Internal("nothing was tried")
        for attempt in range(_ATTEMPTS):
            if attempt:
                self._forget(commands)
                await asyncio.sleep(0.02 * 4**attempt)
            try:
                await self._ownership.settle()
                commands, began_with = self._ours(commands)
                if not commands:
                    return
                group = await self._transact(commands, began_with, statements)
            except (DeskwireError, SQLAlchemyError, OSError) as caught:
                get_logger().warning(
                    "group_failed", attempt=attempt, error=type(caught).__name__, size=len(commands)
                )
                self._ownership.doubt()
                error = caught
                continue
            self._finish(group)
            return
        self._forget(commands)
        if not isinstance(error, DeskwireError) and len(commands) > 1:
            # One of them can't be stored: each by itself, so that it fails alone.
            for command in commands:
                await self._write([command], statements)
            return
        self._refuse(commands, error)

    def _ours(
        self, commands: list[Store | Assign]
    ) -> tuple[list[Store | Assign], dict[int, Partition]]:
        """Return those that may still be written, with their partitions; the others are refused."""
        owned = self._ownership.partitions
        ours: list[Store | Assign] = []
        theirs: dict[int, Partition] = {}
        for command in commands:
            number = partition_of(command.conversation_id)
            mine = owned.get(number)
            if mine is not None and mine.term == command.term:
                ours.append(command)
                theirs[number] = mine
            else:
                self._not_ours(command)
        return ours, theirs

    def _check_held(self, began_with: Mapping[int, Partition]) -> None:
        """Raise unless memory is still about the terms that a group began with."""
        owned = self._ownership.partitions
        if any(owned.get(number) is not mine for number, mine in began_with.items()):
            raise Unavailable("a partition was lost meanwhile")

    def _not_ours(self, command: Store | Assign) -> None:
        if isinstance(command, Accept):
            self._not_accepted(command, NotOwner())
        elif isinstance(command, Assign):
            self.router.proposal_refused(
                command.item.tenant,
                command.conversation_id,
                command.agent.agent_id,
                waits=None,
                doubtful=False,
            )
        else:
            self._answer_refused(command, NotOwner())

    def _refuse(self, commands: list[Store | Assign], cause: Exception) -> None:
        for command in commands:
            if isinstance(command, Assign):
                self.router.proposal_refused(
                    command.item.tenant,
                    command.conversation_id,
                    command.agent.agent_id,
                    waits=command.item,
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
            self._held.hold((command.line, command.conversation_id), command.client_msg_id)

    @staticmethod
    def _answer_refused(command: Store, error: DeskwireError) -> None:
        METRICS.messages_refused.labels(error.reason_name).inc()
        command.reply(error)

    def _forget(self, commands: Sequence[Command]) -> None:
        self.memory.forget(command.conversation_id for command in commands)
        self._ownership.doubt()

    async def _transact(
        self,
        commands: list[Store | Assign],
        began_with: dict[int, Partition],
        statements: Statements | None = None,
    ) -> Group:
        known = await self.memory.load(commands)
        started = self._clock.monotonic()
        group = Group(self, began_with, known, self._now())
        published: dict[int, int] = {}
        if statements is not None and all(_is_plain(each, known) for each in commands):
            for command in commands:
                self._store(group, cast("Store", command))
            self._check_held(began_with)
            if group.heads:
                published = self._log.published(group.heads)
                moves = steps(began_with, group.heads)
                if not await group.append_to_log(statements, moves, published):
                    raise HeadsWrong
        else:
            async with self._db.transaction() as uow:
                await group.visitors.load(uow, _openers(commands, known))
                await group.load_targets(uow, commands)
                for command in commands:
                    await self._do(group, uow, command)
                self._check_held(began_with)
                if group.heads:
                    published = self._log.published(group.heads)
                    await self._ownership.fence(uow, began_with, group.heads, published)
                    await self._outbox.add(uow, await group.flush(uow))
                    await uow.commit()
        if group.heads:
            METRICS.commit_group_size.observe(len(group.stored))
            METRICS.commit_seconds.observe(self._clock.monotonic() - started)
            self._log.saved(published)
            self._committed(group, began_with)
        return group

    async def _do(self, group: Group, uow: UnitOfWork, command: Store | Assign) -> None:
        if isinstance(command, Accept):
            command.result = await command.once(uow, partial(group.accept, uow, command))
        elif isinstance(command, Assign):
            await group.assign(uow, command)
        else:
            self._store(group, command)

    def _store(self, group: Group, command: Store) -> None:
        held = self._held.first((command.line, command.conversation_id))
        if held is not None and held != command.client_msg_id:
            refusal = line_held(held)
            group.after.append(lambda: self._answer_refused(command, refusal))
            return
        try:
            group.store(command)
        except DeskwireError as error:
            refused = error
            group.after.append(lambda: self._answer_refused(command, refused))
        if held is not None:
            group.after.append(lambda: self.forget_line(command.line, [command.conversation_id]))

    def _committed(self, group: Group, began_with: Mapping[int, Partition]) -> None:
        for number, head in group.heads.items():
            began_with[number].head = head
            METRICS.partition_head.labels(str(number)).set(head)
        owned = self._ownership.partitions
        for conversation in group.touched.values():
            number = conversation.partition
            if owned.get(number) is began_with[number]:
                opened = conversation.conversation_id in group.opened
                self.memory.update(conversation, opened=opened)
        self.memory.sent(group.stored)
        for span in group.spans:
            span.end()
        for customer, told in group.visitors.updated:
            self.deliver(told, views.frames.customer_push(customer))

    def _finish(self, group: Group) -> None:
        """Say what was done: to those who wait first, then to the log."""
        group.finish()
        if group.stored:
            self._log.committed(list(group.stored.values()))

    # ------------------------------------------------------------------------------------- accept

    async def _accept(self, command: Accept) -> None:
        try:
            await self._ownership.settle()
            ours, began_with = self._ours([command])
            if not ours:
                return
            group = await self._transact(ours, began_with)
        except Exception as error:  # noqa: BLE001 - it is the caller's
            if not isinstance(error, DeskwireError) or error.temporary:
                self._forget([command])
            self._not_accepted(command, error)
            return
        self._finish(group)
        if not group.heads:
            # A repeated call: what it says was done before, and this offer is another one.
            self._offer_again(command, waits=command.item)
        if not command.future.done():
            command.future.set_result(command.result)

    def _not_accepted(self, command: Accept, error: Exception) -> None:
        over = isinstance(error, NotOwner) or (
            isinstance(error, DeskwireError)
            and error.reason == reasons.ERROR_REASON_OFFER_NOT_FOUND
        )
        self._offer_again(command, waits=None if over else command.item)
        _fail(command.future, error)

    def _offer_again(self, command: Accept, *, waits: WorkItem | None) -> None:
        self.router.proposal_refused(
            command.item.tenant,
            command.conversation_id,
            command.agent.agent_id,
            waits=waits,
            doubtful=waits is not None,
        )

    # -------------------------------------------------------------------------------------- alter

    async def _alter(self, command: Alter) -> None:
        try:
            await self._ownership.settle()
            number = partition_of(command.conversation_id)
            mine = self._ownership.partitions.get(number)
            if mine is None or mine.term != command.term:
                raise NotOwner
            began_with = {number: mine}
            known = await self.memory.load([command])
            before = known.conversations.get(command.conversation_id)
            copy = before.copy() if before is not None else None
            async with self._db.transaction() as uow:
                self._check_held(began_with)
                await self._ownership.fence(uow, began_with, {number: mine.head})
                result = await command.work(uow, copy)
                if copy is not None and before is not None and copy.version != before.version:
                    await conversations.save(uow.connection, copy, old_version=before.version)
                await uow.commit()
        except Exception as error:  # noqa: BLE001 - it is the caller's
            if not isinstance(error, DeskwireError) or error.temporary:
                self._forget([command])
            _fail(command.future, error)
            return
        if copy is not None and before is not None and copy.version != before.version:
            if self._ownership.partitions.get(number) is mine:
                self.memory.update(copy)
            self._changed(before, copy)
        if not command.future.done():
            command.future.set_result(result)

    def _changed(self, before: Conversation, after: Conversation) -> None:
        users = dict.fromkeys([*participants(before), *participants(after)])
        self.deliver(users, views.frames.conversation_push(after))
        tenant, conversation_id = after.tenant, after.conversation_id
        if before.agent_id != after.agent_id or after.state == State.CLOSED:
            self.router.work_ended(tenant, conversation_id, before.agent_id)
        if before.agent_id != after.agent_id and after.agent_id:
            self.router.work_given(tenant, conversation_id, after.agent_id)
            self.introduce(after.copy())
        if after.state == State.QUEUED:
            self.router.enqueue(work_item_of(after))

    def _now(self) -> int:
        return to_micros(self._clock.now())


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _is_plain(command: Store | Assign, known: Known) -> bool:
    """Whether it writes a message and nothing else."""
    return (
        isinstance(command, Store)
        and command.kind == Kind.TEXT
        and command.conversation_id in known.conversations
    )


def _openers(commands: Iterable[Store | Assign], known: Known) -> list[Actor]:
    """The visitors who may open a conversation in this group."""
    return [
        c.who
        for c in commands
        if isinstance(c, Store)
        and c.who.role == ActorRole.VISITOR
        and c.conversation_id not in known.conversations
    ]
