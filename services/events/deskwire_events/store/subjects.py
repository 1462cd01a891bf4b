"""Sequences of external events, by subject."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from deskwire_common import db
from deskwire_common.db import UnitOfWork
from deskwire_events.store.tables import external_subjects


async def draw_sequences(uow: UnitOfWork, tenant: str, counts: Mapping[str, int]) -> dict[str, int]:
    """For each subject the last sequence before its next `counts[subject]` ones, now taken.

    The subjects' rows stay locked until the transaction ends; everybody locks them in one order.
    """
    c = external_subjects.c
    before: dict[str, int] = {}
    for subject in sorted(counts):
        own = (c.tenant_id == tenant, c.subject == subject)
        step = sa.update(external_subjects).where(*own).values(last=c.last + counts[subject])
        if (await uow.execute(step)).rowcount == 0:
            row = {"tenant_id": tenant, "subject": subject, "last": 0}
            await db.insert_if_absent(uow, external_subjects, row)
            await uow.execute(step)
        last = (await uow.execute(sa.select(c.last).where(*own))).scalar_one()
        before[subject] = int(last) - counts[subject]
    return before
