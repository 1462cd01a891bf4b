"""The rows that chat doesn't take, until they are corrected or deleted."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from deskwire_cdc.domain.customers import Refusal
from deskwire_cdc.domain.sources import Source
from deskwire_cdc.store.tables import refused
from deskwire_common import db
from deskwire_common.db import UnitOfWork


async def note(
    uow: UnitOfWork,
    source: Source,
    refusals: Mapping[str, Refusal],
    passed: Mapping[str, frozenset[str]],
) -> tuple[int, str]:
    """Keep what a batch has brought, by subject; return how many rows are refused now, and the last one with its why.

    `passed`: the fields that chat has taken of a row. A row is forgotten when all that was refused of it has passed.
    """
    c = refused.c
    mine = c.incarnation == source.incarnation
    if source.refused_count and passed:
        query = sa.select(c.subject, c.fields).where(mine, c.subject.in_(list(passed)))
        mended = [
            row.subject
            for row in await uow.execute(query)
            if passed[row.subject].issuperset(filter(None, row.fields.split(",")))
        ]
        if mended:
            await uow.execute(sa.delete(refused).where(mine, c.subject.in_(mended)))
    rows = [
        {
            "incarnation": source.incarnation,
            "subject": subject,
            "fields": ",".join(refusal.fields),
            "why": refusal.why,
            "at_change": source.change_count,
        }
        for subject, refusal in refusals.items()
    ]
    await db.upsert(uow, refused, rows, ["incarnation", "subject"])
    if not source.refused_count and not rows:
        return 0, ""
    count = (
        await uow.execute(sa.select(sa.func.count()).select_from(refused).where(mine))
    ).scalar_one()
    last = (
        await uow.execute(
            sa.select(c.subject, c.why)
            .where(mine)
            .order_by(c.at_change.desc(), c.subject.desc())
            .limit(1)
        )
    ).one_or_none()
    return int(count), "" if last is None else f"row {last.subject}: {last.why}"
