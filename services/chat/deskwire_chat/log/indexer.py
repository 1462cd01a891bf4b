"""The search index of messages' words: it follows the committed log, beside the path of messages and never in it.

One process indexes all partitions. How far it got is written in one transaction with the words, on condition that the
position is still the one that was read: a process that takes over goes on there, and two that overlap can't both write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from deskwire.chat.v1 import conversation_pb2
from deskwire_chat import domain
from deskwire_chat.domain import words
from deskwire_chat.domain.messages import Kind
from deskwire_chat.store import partitions, search
from deskwire_chat.store.partitions import Partition
from deskwire_chat.store.search import Entry
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import Aborted
from deskwire_common.metrics import METRICS
from deskwire_common.ownership import Held

POLL_SECONDS: Final = 0.5
"""Seconds between two reads of the log."""
_PAUSE_SECONDS: Final = 0.05
_ROUND: Final = {"postgresql": 2_000, "mysql": 1_000, "sqlite": 300}
"""Messages per transaction; few on SQLite, whose one writer is needed for messages, too."""
_SLICE: Final = 50
_TAKEN_OVER: Final = "another process follows the log"


class SearchIndexer:
    """Follows the log of every partition: the work of one slot."""

    KIND: Final = "search"

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._round_size = _ROUND[db.dialect]
        self._cuts_itself = db.dialect == "postgresql"
        self._positions: dict[int, int] = {}

    async def work(self, held: Held) -> None:
        """Follow the log while the slot is held. Raises the database's errors."""
        self._positions = await self._db.run(
            lambda uow: search.followed(uow, range(domain.conversations.PARTITIONS))
        )
        loop = asyncio.get_running_loop()
        while held.is_held:
            began = loop.time()
            more = await self._round()
            # Work a quarter of the time at the most: with too much to do, messages go first and the index is late.
            pause = max(_PAUSE_SECONDS, 3 * (loop.time() - began))
            await held.wait(pause if more else POLL_SECONDS)

    async def _round(self) -> bool:
        """Index the next messages; whether there are more."""
        async with self._db.read() as c:
            found = await partitions.ROWS.load(c)
            late = [each for each in found if each.head > self._positions[each.id]]
            behind = sum(each.head - self._positions[each.id] for each in late)
            METRICS.search_behind.set(behind)
            if not late:
                METRICS.search_lag_seconds.set(0)
                return False
            steps = self._steps(late)
            oldest = await search.oldest(c, steps)
        waits = 0 if oldest is None else to_micros(self._clock.now()) - oldest
        METRICS.search_lag_seconds.set(max(0, waits) / 1_000_000)
        if not (self._cuts_itself and await self._put_plain(steps)):
            await self._put_rest(steps)
        self._positions.update({number: new for number, (_, new) in steps.items()})
        return behind > _count(steps)

    async def _put_plain(self, steps: search.Steps) -> bool:
        """Have PostgreSQL index what it can by itself; whether that was everything, so that the steps are taken."""

        async def work(uow: UnitOfWork) -> tuple[int, bool]:
            if not await search.hold(uow, steps):
                raise Aborted(_TAKEN_OVER)
            count = await search.put_plain(uow, steps)
            whole = count == _count(steps)
            if whole:
                await search.advance(uow, steps)
            return count, whole

        count, whole = await self._db.run(work)
        METRICS.search_indexed.inc(count)
        return whole

    async def _put_rest(self, steps: search.Steps) -> None:
        """Index everything else, and the messages that it changes, with words cut here; then take the steps."""
        async with self._db.read() as c:
            rows = await search.log(c, steps)
            changed = await search.at(c, _targets(rows))
        latest = {(row.partition_id, row.position): row for row in [*rows, *changed]}
        entries = await _entries(list(latest.values()))
        gone = [search.entry_id(row.partition_id, row.position) for row in changed]

        async def work(uow: UnitOfWork) -> None:
            if not await search.advance(uow, steps):
                raise Aborted(_TAKEN_OVER)
            await search.put(uow, entries, gone=gone)

        await self._db.run(work)
        METRICS.search_indexed.inc(len(entries))

    def _steps(self, late: Sequence[Partition]) -> dict[int, tuple[int, int]]:
        """Return how far a round goes in every partition; positions have no holes."""
        share = self._round_size // len(late)
        olds = {each.id: self._positions[each.id] for each in late}
        return {each.id: (olds[each.id], min(each.head, olds[each.id] + share)) for each in late}


def _count(steps: search.Steps) -> int:
    """Return how many messages some steps cover."""
    return sum(new - old for old, new in steps.values())


async def _entries(rows: Sequence[Any]) -> list[Entry]:
    """Cut messages into words, with pauses in which the process does its other work."""
    entries = []
    for place, row in enumerate(rows):
        if place % _SLICE == _SLICE - 1:
            await asyncio.sleep(0)
        entry = _entry(row)
        if entry is not None:
            entries.append(entry)
    return entries


def _entry(row: Any) -> Entry | None:
    """Return a message's line in the index; None when it has no words."""
    content = conversation_pb2.Content.FromString(row.body)
    if row.kind == Kind.TEXT:
        text = content.text
    elif row.kind == Kind.NOTE:
        text = content.note.text
    elif row.kind == Kind.ATTACHMENT:
        text = content.attachment.file_name
    else:
        return None
    found = words.of_text(text)
    if not found:
        return None
    return Entry(
        id=search.entry_id(row.partition_id, row.position),
        tenant=row.tenant_id,
        conversation_id=row.conversation_id,
        seq=row.seq,
        message_id=row.message_id,
        created_at=row.created_at,
        note=row.kind == Kind.NOTE,
        words=found,
    )


def _targets(rows: Sequence[Any]) -> list[tuple[str, int]]:
    """Return (conversation, seq) of the messages that the rows have changed."""
    return [(row.conversation_id, row.target_seq) for row in rows if row.target_seq]
