"""Tables and queries of change capture: the only SQL of this service's own database.

What callers ask for is limited to one tenant; the workers see all sources. Every write of a
worker is
fenced by the source's `term`: whoever lost the source to another process can't move its position
back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_cdc.domain import (
    Change,
    CustomerRule,
    Kind,
    Source,
    State,
    change_from_json,
    change_to_json,
)
from deskwire_common import db
from deskwire_common.db import UnitOfWork
from deskwire_common.errors import Aborted
from deskwire_common.idempotency import idempotency_table
from deskwire_common.outbox import outbox_table, published_table
from deskwire_common.ownership import members_table, slots_table

METADATA = db.metadata()
idempotency_table(METADATA)
outbox_table(METADATA)
published_table(METADATA)
members_table(METADATA)
slots_table(METADATA)

sources = sa.Table(
    "sources",
    METADATA,
    sa.Column("incarnation", db.Id, primary_key=True),
    sa.Column("tenant_id", db.Name, nullable=False),
    sa.Column("source_id", db.Name, nullable=False),
    # 1, or NULL once deleted: the row stays until what was installed in the source is taken out.
    sa.Column("active", sa.SmallInteger, nullable=True),
    sa.Column("kind", db.Name, nullable=False),
    sa.Column("url", db.LongText, nullable=False),
    sa.Column("system_id", db.Name, nullable=False),
    sa.Column("tables", db.LongText, nullable=False),
    sa.Column("customer_rule", db.LongText, nullable=False),
    sa.Column("snapshot", sa.SmallInteger, nullable=False),
    sa.Column("created_at", db.Micros, nullable=False),
    sa.Column("version", db.UInt32, nullable=False),
    sa.Column("state", db.Name, nullable=False),
    sa.Column("position", db.LongText, nullable=False),
    sa.Column("last_error", db.LongText, nullable=False),
    sa.Column("change_count", sa.BigInteger, nullable=False),
    sa.Column("read_count", sa.BigInteger, nullable=False),
    sa.Column("last_change_at", db.Micros, nullable=False),
    sa.Column("snapshot_cursor", db.LongText, nullable=False),
    sa.Column("term", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("tenant_id", "source_id", "active"),
)

# Outlives the source: the sequence of its events goes on when it is created again.
versions = sa.Table(
    "source_versions",
    METADATA,
    sa.Column("tenant_id", db.Name, primary_key=True),
    sa.Column("source_id", db.Name, primary_key=True),
    sa.Column("version", db.UInt32, nullable=False),
)

# The last sequence of every row that ever changed; outlives the source for the same reason.
sequences = sa.Table(
    "row_sequences",
    METADATA,
    sa.Column("subject", db.ascii_text(384), primary_key=True),
    sa.Column("sequence", db.UInt32, nullable=False),
)

# The snapshot rows that are being delivered: read once, so that a repeated delivery says the same.
staged = sa.Table(
    "staged_changes",
    METADATA,
    sa.Column("incarnation", db.Id, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("row_change", db.LongText, nullable=False),
)


async def next_version(uow: UnitOfWork, tenant: str, source_id: str) -> int:
    """The source's next version; its row stays locked until the end of the transaction."""
    c = versions.c
    step = (
        sa.update(versions)
        .where(c.tenant_id == tenant, c.source_id == source_id)
        .values(version=c.version + 1)
    )
    if (await uow.execute(step)).rowcount == 0:
        row = {"tenant_id": tenant, "source_id": source_id, "version": 0}
        await db.insert_if_absent(uow, versions, row)
        await uow.execute(step)
    query = sa.select(c.version).where(c.tenant_id == tenant, c.source_id == source_id)
    return int((await uow.execute(query)).scalar_one())


async def insert_source(uow: UnitOfWork, source: Source) -> bool:
    """Write a new source; False when its id is taken."""
    values = asdict(source)
    rule = values.pop("customer_rule")
    row = {
        **values,
        "active": 1,
        "kind": source.kind.value,
        "state": source.state.value,
        "tables": json.dumps(source.tables),
        "customer_rule": "" if rule is None else json.dumps(rule),
        "snapshot": int(source.snapshot),
    }
    return await db.insert_if_absent(uow, sources, row)


async def find_source(connection: AsyncConnection, tenant: str, source_id: str) -> Source | None:
    """A live source as of the last commit."""
    query = sa.select(sources).where(
        sources.c.tenant_id == tenant, sources.c.source_id == source_id, sources.c.active == 1
    )
    row = (await connection.execute(query)).mappings().one_or_none()
    return None if row is None else _source(row)


async def list_sources(
    connection: AsyncConnection, tenant: str, *, after: str, limit: int
) -> list[Source]:
    """Live sources by id, those after `after`."""
    c = sources.c
    query = (
        sa.select(sources)
        .where(c.tenant_id == tenant, c.active == 1, c.source_id > after)
        .order_by(c.source_id)
        .limit(limit)
    )
    return [_source(row) for row in (await connection.execute(query)).mappings()]


async def captured_tables(connection: AsyncConnection, tenant: str) -> list[int]:
    """How many tables each live source of a tenant has."""
    c = sources.c
    query = sa.select(c.tables).where(c.tenant_id == tenant, c.active == 1)
    return [len(json.loads(text)) for text in (await connection.execute(query)).scalars()]


async def all_sources(connection: AsyncConnection) -> tuple[list[Source], list[Source]]:
    """The live ones and the deleted ones of all tenants: for the workers, never for a caller."""
    live: list[Source] = []
    deleted: list[Source] = []
    for row in (await connection.execute(sa.select(sources))).mappings():
        (live if row["active"] else deleted).append(_source(row))
    return live, deleted


async def deactivate(uow: UnitOfWork, source: Source) -> bool:
    """Delete a live source, and fence its worker; False when it was deleted meanwhile."""
    c = sources.c
    statement = (
        sa.update(sources)
        .where(c.incarnation == source.incarnation, c.active == 1)
        .values(active=None, term=c.term + 1)
    )
    return (await uow.execute(statement)).rowcount == 1


async def forget(uow: UnitOfWork, source: Source) -> None:
    """Remove the row of a deleted source: nothing is left in the external database."""
    await uow.execute(sa.delete(staged).where(staged.c.incarnation == source.incarnation))
    await uow.execute(sa.delete(sources).where(sources.c.incarnation == source.incarnation))


async def take_over(uow: UnitOfWork, source: Source) -> Source | None:
    """Become the source's one worker; the source as it is now, None when it was deleted."""
    c = sources.c
    mine = (c.incarnation == source.incarnation, c.active == 1)
    if (await uow.execute(sa.update(sources).where(*mine).values(term=c.term + 1))).rowcount == 0:
        return None
    row = (await uow.execute(sa.select(sources).where(*mine))).mappings().one()
    return _source(row)


async def save_progress(
    uow: UnitOfWork, source: Source, sequences_after: Mapping[str, int], *, unstage: bool
) -> None:
    """Write position, counts and state, with the sequences that were given out on the way.

    Raises Aborted when another process took the source over, or it was deleted.
    """
    await _fenced(
        uow,
        source,
        position=source.position,
        read_count=source.read_count,
        change_count=source.change_count,
        last_change_at=source.last_change_at,
        state=source.state.value,
        last_error=source.last_error,
    )
    rows = [{"subject": key, "sequence": value} for key, value in sequences_after.items()]
    await db.upsert(uow, sequences, rows, ["subject"])
    if unstage:
        await uow.execute(sa.delete(staged).where(staged.c.incarnation == source.incarnation))


async def save_state(uow: UnitOfWork, source: Source) -> None:
    """Write how the source is doing. Raises Aborted when it is somebody else's by now."""
    await _fenced(uow, source, state=source.state.value, last_error=source.last_error)


async def stage(uow: UnitOfWork, source: Source, changes: Sequence[Change]) -> None:
    """Keep the snapshot rows that go out next, and `source.snapshot_cursor` behind them."""
    await _fenced(uow, source, snapshot_cursor=source.snapshot_cursor)
    rows = [
        {"incarnation": source.incarnation, "number": number, "row_change": change_to_json(change)}
        for number, change in enumerate(changes)
    ]
    if rows:
        await uow.execute(sa.insert(staged), rows)


async def staged_changes(connection: AsyncConnection, source: Source) -> list[Change]:
    """Snapshot rows whose delivery isn't saved."""
    query = (
        sa.select(staged.c.row_change)
        .where(staged.c.incarnation == source.incarnation)
        .order_by(staged.c.number)
    )
    return [change_from_json(text) for text in (await connection.execute(query)).scalars()]


async def last_sequences(connection: AsyncConnection, subjects: Sequence[str]) -> dict[str, int]:
    """The last saved sequence of each subject that has one."""
    c = sequences.c
    query = sa.select(c.subject, c.sequence).where(c.subject.in_(subjects))
    return {row.subject: int(row.sequence) for row in await connection.execute(query)}


async def _fenced(uow: UnitOfWork, source: Source, **values: Any) -> None:
    c = sources.c
    statement = (
        sa.update(sources)
        .where(c.incarnation == source.incarnation, c.term == source.term, c.active == 1)
        .values(values)
    )
    if (await uow.execute(statement)).rowcount != 1:
        raise Aborted(f"the source {source.aggregate_id} has another owner, or was deleted")


def _source(row: Mapping[Any, Any]) -> Source:
    values = {name: value for name, value in row.items() if name != "active"}
    rule = values.pop("customer_rule")
    values["tables"] = tuple(json.loads(values["tables"]))
    values["kind"], values["state"] = Kind(values["kind"]), State(values["state"])
    values["snapshot"] = bool(values["snapshot"])
    return Source(**values, customer_rule=CustomerRule(**json.loads(rule)) if rule else None)
