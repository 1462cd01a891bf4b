"""The writer: every message, opening, assignment and end of a conversation goes through it, in order.

Commands wait in lanes (`lanes`), which write them in groups (`commit`). A message that is refused for now holds the
line of its connection: later messages are refused until it comes again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable
from typing import Any, Final

from deskwire_chat.domain.agents import Agent
from deskwire_chat.domain.conversations import Conversation, partition_of
from deskwire_chat.domain.work import WorkItem
from deskwire_chat.log.commands import (
    Accept,
    Alter,
    Command,
    Give,
    Held,
    Import,
    Imported,
    Propose,
)
from deskwire_chat.log.commit import Committer, Log
from deskwire_chat.log.group import Collaborators
from deskwire_chat.log.imports import Importer
from deskwire_chat.log.lanes import Lanes
from deskwire_chat.log.memory import Memory
from deskwire_chat.owners.errors import NotOwner
from deskwire_chat.owners.ownership import Ownership
from deskwire_common.clock import Clock
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import DeskwireError, ResourceExhausted, stopping
from deskwire_common.outbox import Outbox

QUEUE: Final = 20_000
"""Most commands that wait in one lane; more are refused with OVERLOADED."""


class LogWriter:
    """The single writer of the conversations of all partitions that this process owns."""

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        ownership: Ownership,
        collaborators: Collaborators,
        *,
        clock: Clock,
        log: Log,
        updated: Callable[[Conversation], None],
        held: Held,
    ) -> None:
        """`updated` is called with every conversation that was committed; `held` are the held lines."""
        self._ownership = ownership
        self._router = collaborators.router
        self._held = held
        self._closing = False
        self.memory = Memory(db, updated)
        committer = Committer(
            db, outbox, ownership, collaborators, self.memory, self._held, log, clock
        )
        importer = Importer(db, outbox, ownership, self.memory, log, committer)
        self._lanes = Lanes(db, committer, importer)

    def submit(self, command: Command) -> None:
        """Queue a command.

        Raises NotOwner for another process's conversation, ResourceExhausted when too many wait, Unavailable when this
        process stops.
        """
        if self._closing:
            raise stopping()
        partition = partition_of(command.conversation_id)
        term = self._ownership.term_of(partition)
        if not term or command.term not in {0, term}:
            raise NotOwner
        command.term = term
        lane = self._lanes.of(partition)
        if len(lane.queue) >= QUEUE and command.is_bounded:
            command.hold(self._held)
            raise ResourceExhausted("too many messages wait to be stored", retry_after=0.5)
        lane.put(command)

    def propose(self, item: WorkItem, agent: Agent) -> None:
        """Queue routing's proposal (routing.router.Proposer)."""
        if self._closing:
            return
        command = Propose(item, agent, self._router)
        try:
            self.submit(command)
        except NotOwner:
            # The next owner's routing has the conversation. Answer later, as routing is within a step of its own now.
            asyncio.get_running_loop().call_soon(command.not_ours)

    async def alter(
        self,
        conversation_id: str,
        work: Callable[[UnitOfWork, Conversation | None], Awaitable[Any]],
    ) -> Any:
        """Run `work` on a conversation in a transaction of its own, in order with its other commands; see Alter."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.submit(Alter(conversation_id, work, future))
        return await future

    async def bring_in(
        self,
        conversation_id: str,
        size: int,
        work: Callable[[UnitOfWork, int], Awaitable[Imported]],
    ) -> Any:
        """Store a part of another system's conversation, in order with its partition's other commands; see Import."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.submit(Import(conversation_id, size, work, future))
        return await future

    async def accept(
        self, item: WorkItem, agent: Agent, once: Callable[[UnitOfWork, Give], Awaitable[Any]]
    ) -> Any:
        """Give an agent the conversation whose offer they claimed, in order with its other commands; see Accept."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        command = Accept(item, agent, self._router, once, future)
        try:
            self.submit(command)
        except DeskwireError as error:
            command.refuse(error)
        return await future

    def forget_line(self, line: Hashable, conversation_ids: Iterable[str]) -> None:
        """Release the lines of a connection that has gone."""
        for conversation_id in conversation_ids:
            self._held.release((line, conversation_id))

    async def finish(self) -> None:
        """Return when everything that was queued before is stored or refused."""
        await self._lanes.finish()

    def forget_partitions(self, numbers: Collection[int]) -> None:
        """Forget memory of partitions that another process owns now, or owned until now."""
        self.memory.forget_partitions(numbers)
        for line in [each for each in self._held if partition_of(each[1]) in numbers]:
            self._held.release(line)

    async def run(self) -> None:
        """Write until cancelled."""
        await self._lanes.run()

    async def drain(self) -> None:
        """Take no more commands, and finish those that wait."""
        self._closing = True
        await self._lanes.drain()
