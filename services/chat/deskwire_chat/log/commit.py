"""Committing: one transaction per group, which proves its terms, and the answers after it.

Rules (docs/architecture.md, "The walk of a message"): a group is one transaction, which moves the heads of its
partitions under their terms (the fence); dedupe comes before numbering; nothing is acknowledged before the commit;
whatever goes wrong, memory is discarded and read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol, cast

from sqlalchemy.exc import SQLAlchemyError

from deskwire_chat import views
from deskwire_chat.domain.actors import Actor, ActorRole
from deskwire_chat.domain.conversations import Conversation, State, participants, partition_of
from deskwire_chat.domain.messages import Kind
from deskwire_chat.domain.work import work_item_of
from deskwire_chat.log.commands import (
    Accept,
    Alter,
    Command,
    Grouped,
    Held,
    Import,
    Put,
    Stored,
)
from deskwire_chat.log.group import Collaborators, Group
from deskwire_chat.log.memory import Known, Memory
from deskwire_chat.owners.errors import NotOwner
from deskwire_chat.owners.ownership import HeadsWrong, Ownership, steps
from deskwire_chat.store import conversations
from deskwire_chat.store.partitions import Partition
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import (
    CommitInDoubt,
    Database,
    Statements,
)
from deskwire_common.errors import DeskwireError, Internal, Unavailable
from deskwire_common.lines import line_held
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_common.outbox import Outbox

_ATTEMPTS: Final = 3


class Log(Protocol):
    """Takes committed messages, on their way to Kafka (publisher.Publisher)."""

    def committed(self, stored: Sequence[Stored]) -> None: ...

    def imported(self, partition: int, head: int) -> None: ...

    def published(self, numbers: Iterable[int]) -> dict[int, int]: ...

    def saved(self, published: Mapping[int, int]) -> None: ...

    def reached(self, heads: Mapping[int, int]) -> None: ...


class Committer:
    """Writes groups, and commands that are alone; memory is always as the last commit left it."""

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        ownership: Ownership,
        collaborators: Collaborators,
        memory: Memory,
        held: Held,
        log: Log,
        clock: Clock,
    ) -> None:
        self._db = db
        self._outbox = outbox
        self._ownership = ownership
        self._with = collaborators
        self._memory = memory
        self._held = held
        self._log = log
        self._clock = clock

    # -------------------------------------------------------------------------------------- groups

    async def write(self, commands: list[Grouped], statements: Statements | None) -> None:
        """Write a group and answer all its commands; never raises errors of the database or of ownership."""
        error: Exception = Internal("nothing was tried")
        in_doubt: list[Grouped] = []
        for attempt in range(_ATTEMPTS):
            if attempt:
                self.forget(commands)
                await asyncio.sleep(0.02 * 4**attempt)
            try:
                await self.settle()
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
                if isinstance(caught, CommitInDoubt):
                    in_doubt = commands
                continue
            self._finish(group)
            self._settle_later(in_doubt)
            return
        self.forget(commands)
        self._settle_later(in_doubt)
        if not isinstance(error, DeskwireError) and len(commands) > 1:
            # One of them can't be stored: write each by itself, so that it fails alone.
            for command in commands:
                await self.write([command], statements)
            return
        for command in commands:
            command.give_up(error, self._held)

    async def settle(self) -> None:
        """Read the heads again if they are in doubt; what a commit in doubt has stored is to be published, too."""
        if await self._ownership.settle():
            owned = self._ownership.partitions
            self._log.reached({number: each.head for number, each in owned.items()})

    def _settle_later(self, commands: Sequence[Grouped | Accept]) -> None:
        """Have done what a commit in doubt left undone; what follows from the next try was done already."""
        for each in commands:
            agents = [] if isinstance(each, Put) else [(each.item.tenant, each.agent.agent_id)]
            self._with.in_doubt(each.conversation_id, agents)

    def _ours(self, commands: list[Grouped]) -> tuple[list[Grouped], dict[int, Partition]]:
        """Return the commands that may still be written, with their partitions; refuse the others."""
        owned = self._ownership.partitions
        ours: list[Grouped] = []
        theirs: dict[int, Partition] = {}
        for command in commands:
            number = partition_of(command.conversation_id)
            mine = owned.get(number)
            if mine is not None and mine.term == command.term:
                ours.append(command)
                theirs[number] = mine
            else:
                command.not_ours()
        return ours, theirs

    def check_held(self, began_with: Mapping[int, Partition]) -> None:
        """Raise unless memory still belongs to the terms that a group began with."""
        owned = self._ownership.partitions
        if any(owned.get(number) is not mine for number, mine in began_with.items()):
            raise Unavailable("a partition was lost meanwhile")

    def forget(self, commands: Sequence[Command]) -> None:
        self._memory.forget(command.conversation_id for command in commands)
        self._ownership.doubt()

    async def _transact(
        self,
        commands: Sequence[Grouped | Accept],
        began_with: dict[int, Partition],
        statements: Statements | None = None,
    ) -> Group:
        known = await self._memory.load(commands)
        started = self._clock.monotonic()
        group = Group(self._with, began_with, known, self._now())
        published: dict[int, int] = {}
        if statements is not None and all(_is_plain(each, known) for each in commands):
            for command in commands:
                self._put(group, cast("Put", command))
            self.check_held(began_with)
            if group.heads:
                published = self._log.published(group.heads)
                moves = steps(began_with, group.heads)
                if not await group.append_to_log(statements, moves, published):
                    raise HeadsWrong
        else:
            async with self._db.transaction() as uow:
                await group.load(uow, commands, _openers(commands, known))
                for command in commands:
                    if isinstance(command, Put):
                        self._put(group, command)
                    else:
                        await command.decide(uow, group)
                self.check_held(began_with)
                if group.heads:
                    published = self._log.published(group.heads)
                    await self._ownership.fence(uow, began_with, group.heads, published)
                    await self._outbox.add(uow, await group.flush(uow))
                    try:
                        await uow.commit()
                    except BaseException:
                        # It may be committed: then the next attempt finds nothing left to change, and nothing to tell.
                        self._with.customers_changed(group.openings.changed, in_doubt=True)
                        raise
        if group.heads:
            METRICS.commit_group_size.observe(len(group.stored))
            METRICS.commit_seconds.observe(self._clock.monotonic() - started)
            self._log.saved(published)
            self._committed(group, began_with)
        return group

    def _put(self, group: Group, command: Put) -> None:
        held = self._held.first((command.line, command.conversation_id))
        if held is not None and held != command.client_msg_id:
            refusal = line_held(held)
            group.after.append(lambda: command.refuse(refusal))
            return
        try:
            group.put(command)
        except DeskwireError as error:
            refused = error
            group.after.append(lambda: command.refuse(refused))
            if refused.temporary:
                command.hold(self._held)
                return
        if held is not None:
            line = command.line, command.conversation_id
            group.after.append(lambda: self._held.release(line))

    def _committed(self, group: Group, began_with: Mapping[int, Partition]) -> None:
        for number, head in group.heads.items():
            began_with[number].head = head
            METRICS.partition_head.labels(str(number)).set(head)
        owned = self._ownership.partitions
        for conversation in group.touched.values():
            number = conversation.partition
            if owned.get(number) is began_with[number]:
                opened = conversation.conversation_id in group.opened
                self._memory.update(conversation, opened=opened)
        self._memory.sent(group.stored)
        for span in group.spans:
            span.end()
        self._with.customers_changed(group.openings.changed)

    def _finish(self, group: Group) -> None:
        """Report what was committed: to the senders who wait first, then to the log."""
        group.finish()
        if group.stored:
            self._log.committed(list(group.stored.values()))

    # --------------------------------------------------------------------------------------- alone

    async def accept(self, command: Accept) -> None:
        """Give an agent the conversation whose offer they claimed, and answer."""
        try:
            await self.settle()
            began_with = self.owned(command)
            group = await self._transact([command], began_with)
        except Exception as error:  # noqa: BLE001 - the caller gets it
            self._failed(command, error)
            if isinstance(error, CommitInDoubt):
                self._settle_later([command])
            return
        self._finish(group)
        if not group.heads:
            command.repeated()
        command.answer()

    async def alter(self, command: Alter) -> None:
        """Change a conversation as the command says, push the change, and answer."""
        before: Conversation | None = None
        copy: Conversation | None = None
        try:
            await self.settle()
            began_with = self.owned(command)
            ((number, mine),) = began_with.items()
            known = await self._memory.load([command])
            before = known.conversations.get(command.conversation_id)
            copy = before.copy() if before is not None else None
            async with self._db.transaction() as uow:
                self.check_held(began_with)
                await self._ownership.fence(uow, began_with, {number: mine.head})
                result = await command.work(uow, copy)
                if copy is not None and before is not None and copy.version != before.version:
                    await conversations.save(uow.connection, copy, old_version=before.version)
                await uow.commit()
        except Exception as error:  # noqa: BLE001 - the caller gets it
            self._failed(command, error)
            if isinstance(error, CommitInDoubt):
                had = {(each.tenant, each.agent_id) for each in (before, copy) if each is not None}
                self._with.in_doubt(command.conversation_id, had)
            return
        if copy is not None and before is not None and copy.version != before.version:
            if self._ownership.partitions.get(number) is mine:
                self._memory.update(copy)
            self._altered(before, copy)
        command.answer(result)

    def owned(self, command: Accept | Alter | Import) -> dict[int, Partition]:
        """Return the partition of a command. Raises NotOwner when this process doesn't own it any more."""
        number = partition_of(command.conversation_id)
        mine = self._ownership.partitions.get(number)
        if mine is None or mine.term != command.term:
            raise NotOwner
        return {number: mine}

    def _failed(self, command: Accept | Alter, error: Exception) -> None:
        if not isinstance(error, DeskwireError) or error.temporary:
            self.forget([command])
        command.refuse(error)

    def _altered(self, before: Conversation, after: Conversation) -> None:
        users = dict.fromkeys([*participants(before), *participants(after)])
        self._with.deliver(users, views.frames.conversation_push(after))
        router = self._with.router
        tenant, conversation_id = after.tenant, after.conversation_id
        if before.agent_id != after.agent_id or after.state == State.CLOSED:
            router.work_ended(tenant, conversation_id, before.agent_id)
        if before.agent_id != after.agent_id and after.agent_id:
            router.work_given(tenant, conversation_id, after.agent_id)
            self._with.introduce(after.copy())
        if after.state == State.QUEUED:
            router.enqueue(work_item_of(after))

    def _now(self) -> int:
        return to_micros(self._clock.now())


def _is_plain(command: Grouped | Accept, known: Known) -> bool:
    """Whether a command writes a message and nothing else."""
    return (
        isinstance(command, Put)
        and command.kind == Kind.TEXT
        and command.conversation_id in known.conversations
    )


def _openers(commands: Iterable[Command], known: Known) -> list[Actor]:
    """Return the visitors who may open a conversation in this group."""
    return [
        c.who
        for c in commands
        if isinstance(c, Put)
        and c.who.role == ActorRole.VISITOR
        and c.conversation_id not in known.conversations
    ]
