"""Where each subscription is: the watermark of every partition."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common import db
from deskwire_common.db import UnitOfWork
from deskwire_events.store.tables import places

Place: TypeAlias = tuple[str, int]
"""Topic and partition."""


async def load(
    connection: AsyncConnection, incarnations: Sequence[str]
) -> dict[str, dict[Place, int]]:
    """The places of subscriptions."""
    found: dict[str, dict[Place, int]] = {incarnation: {} for incarnation in incarnations}
    query = sa.select(places).where(places.c.incarnation.in_(incarnations))
    for row in (await connection.execute(query)).mappings():
        for partition, offset in json.loads(row["positions"]).items():
            found[row["incarnation"]][row["topic"], int(partition)] = offset
    return found


async def save(
    uow: UnitOfWork, rows: Mapping[str, Mapping[Place, int]], terms: Mapping[str, int]
) -> None:
    """Write places under the terms of their slots; a topic that is named is written with all its partitions."""
    values = []
    for incarnation, marks in sorted(rows.items()):
        by_topic: dict[str, dict[int, int]] = {}
        for (topic, partition), offset in marks.items():
            by_topic.setdefault(topic, {})[partition] = offset
        for topic, positions in sorted(by_topic.items()):
            values.append(
                {
                    "incarnation": incarnation,
                    "topic": topic,
                    "positions": json.dumps(positions, separators=(",", ":")),
                    "term": terms.get(incarnation, 0),
                }
            )
    await db.upsert(uow, places, values, ["incarnation", "topic"])


async def add(uow: UnitOfWork, incarnation: str, begins: Mapping[Place, int]) -> None:
    """Begin in topics that are new to a subscription; in the others it goes on where it is."""
    known = (await load(uow.connection, [incarnation]))[incarnation]
    topics = {topic for topic, _ in known}
    new = {place: offset for place, offset in begins.items() if place[0] not in topics}
    await save(uow, {incarnation: new}, {})


async def remove(uow: UnitOfWork, incarnation: str) -> None:
    """Forget all places of a subscription."""
    await uow.execute(sa.delete(places).where(places.c.incarnation == incarnation))
