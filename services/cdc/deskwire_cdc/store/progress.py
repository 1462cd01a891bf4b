"""How far sources are: positions, sequences, and the snapshot's rows that go out next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_cdc.domain.changes import Change, change_from_json, change_to_json
from deskwire_cdc.domain.sources import Source
from deskwire_cdc.store.sources import save as save_source
from deskwire_cdc.store.tables import sequences, staged
from deskwire_common import db
from deskwire_common.db import UnitOfWork


async def save(
    uow: UnitOfWork, source: Source, sequences_after: Mapping[str, int], *, unstage: bool
) -> None:
    """Write position, counts and state, with the sequences that were given out on the way.

    Raises Aborted when another process took the source over, or it was deleted.
    """
    await save_source(
        uow,
        source,
        position=source.position,
        read_count=source.read_count,
        change_count=source.change_count,
        last_change_at=source.last_change_at,
        state=source.state.value,
        last_error=source.last_error,
        refused_count=source.refused_count,
    )
    rows = [{"subject": key, "sequence": value} for key, value in sequences_after.items()]
    await db.upsert(uow, sequences, rows, ["subject"])
    if unstage:
        await uow.execute(sa.delete(staged).where(staged.c.incarnation == source.incarnation))


async def save_state(uow: UnitOfWork, source: Source) -> None:
    """Write how the source is doing. Raises Aborted when it is somebody else's by now."""
    await save_source(uow, source, state=source.state.value, last_error=source.last_error)


async def stage(uow: UnitOfWork, source: Source, changes: Sequence[Change]) -> None:
    """Keep the snapshot rows that go out next, and `source.snapshot_cursor` behind them."""
    await save_source(uow, source, snapshot_cursor=source.snapshot_cursor)
    rows = [
        {"incarnation": source.incarnation, "number": number, "row_change": change_to_json(change)}
        for number, change in enumerate(changes)
    ]
    if rows:
        await uow.execute(sa.insert(staged), rows)


async def staged_changes(connection: AsyncConnection, source: Source) -> list[Change]:
    """Return snapshot rows whose delivery isn't saved."""
    query = (
        sa.select(staged.c.row_change)
        .where(staged.c.incarnation == source.incarnation)
        .order_by(staged.c.number)
    )
    return [change_from_json(text) for text in (await connection.execute(query)).scalars()]


async def last_sequences(connection: AsyncConnection, subjects: Sequence[str]) -> dict[str, int]:
    """Return the last saved sequence of each subject that has one."""
    c = sequences.c
    query = sa.select(c.subject, c.sequence).where(c.subject.in_(subjects))
    return {row.subject: int(row.sequence) for row in await connection.execute(query)}
