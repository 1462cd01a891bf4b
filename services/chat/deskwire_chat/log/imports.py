"""Committing imports: those that wait together in one transaction, which proves its terms as a group's does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from deskwire_chat.log.commands import Command, Import, Imported
from deskwire_chat.log.memory import Memory
from deskwire_chat.owners.ownership import Ownership
from deskwire_chat.store.partitions import Partition
from deskwire_common.db import Database, WriteConflict, is_unique_violation
from deskwire_common.errors import DeskwireError
from deskwire_common.events import DomainEvent
from deskwire_common.metrics import METRICS
from deskwire_common.outbox import Outbox


class Terms(Protocol):
    """The partitions of this process, and what is in doubt of them (commit.Committer)."""

    async def settle(self) -> None: ...

    def owned(self, command: Import) -> dict[int, Partition]: ...

    def check_held(self, began_with: Mapping[int, Partition]) -> None: ...

    def forget(self, commands: Sequence[Command]) -> None: ...


class Passed(Protocol):
    """Takes how far imports have moved the log, as they aren't published (publisher.Publisher)."""

    def imported(self, partition: int, head: int) -> None: ...


class Importer:
    """Writes imports; memory is always as the last commit left it."""

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        ownership: Ownership,
        memory: Memory,
        log: Passed,
        terms: Terms,
    ) -> None:
        self._db = db
        self._outbox = outbox
        self._ownership = ownership
        self._memory = memory
        self._log = log
        self._terms = terms

    async def bring_in(self, commands: Sequence[Import]) -> None:
        """Write parts of another system's conversations in one transaction, and answer; nobody is pushed anything.

        If it fails as a whole, each is written by itself.
        """
        try:
            found, heads, began_with = await self._bring_in(commands)
        except Exception as error:  # noqa: BLE001 - the callers get it
            self._terms.forget(commands)
            if len(commands) > 1:
                for each in commands:
                    await self.bring_in([each])
                return
            conflict = is_unique_violation(error)
            commands[0].refuse(WriteConflict("another import was faster") if conflict else error)
            return
        for number, head in heads.items():
            began_with[number].head = head
            METRICS.partition_head.labels(str(number)).set(head)
            self._log.imported(number, head)
        for command, result in found:
            if isinstance(result, DeskwireError):
                command.refuse(result)
                continue
            if result.messages:
                METRICS.messages_imported.inc(len(result.messages))
                # Memory has no keys of these messages: it reads the conversation again when that is used.
                self._memory.forget([command.conversation_id])
                self._memory.update(result.conversation)
            command.answer(result.result)

    async def _bring_in(
        self, commands: Sequence[Import]
    ) -> tuple[list[tuple[Import, Imported | DeskwireError]], dict[int, int], dict[int, Partition]]:
        """Return what each import came to, and how far the heads of their partitions were moved."""
        await self._terms.settle()
        results: list[tuple[Import, Imported | DeskwireError]] = []
        heads: dict[int, int] = {}
        began_with: dict[int, Partition] = {}
        events: list[DomainEvent] = []
        async with self._db.transaction() as uow:
            for command in commands:
                ((number, mine),) = self._terms.owned(command).items()
                head = heads.get(number, mine.head)
                try:
                    found = await command.work(uow, head)
                except DeskwireError as refusal:
                    if refusal.temporary:
                        raise
                    # It has written nothing: the others are stored.
                    results.append((command, refusal))
                    continue
                results.append((command, found))
                if found.flush is not None:
                    began_with[number], heads[number] = mine, head + len(found.messages)
                    events += await found.flush(uow)
            if heads:
                self._terms.check_held(began_with)
                await self._ownership.fence(uow, began_with, heads)
                await self._outbox.add(uow, events)
                await uow.commit()
        return results, heads, began_with
