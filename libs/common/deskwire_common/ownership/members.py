"""Members: the living processes of a service. Each has a row with the end of its lease, which it prolongs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common import db as dbs


@dataclass(frozen=True, slots=True)
class Member:
    """One row of `members`: a process, which counts as alive until `lease_until` (microseconds)."""

    name: str
    instance: str
    """Which life of the process this is: the newest one of a name counts."""
    address: str
    lease_until: int


def members_table(metadata: sa.MetaData) -> sa.Table:
    """The table `members` of a service."""
    return sa.Table(
        "members",
        metadata,
        sa.Column("name", dbs.binary_text(128), primary_key=True),
        sa.Column("instance", dbs.Id, nullable=False),
        sa.Column("address", dbs.binary_text(255), nullable=False),
        sa.Column("lease_until", dbs.Micros, nullable=False),
    )


class Members:
    """The rows of `members`."""

    def __init__(self, metadata: sa.MetaData) -> None:
        self.table = members_table(metadata)

    async def load(self, c: AsyncConnection) -> list[Member]:
        """Return all, the dead ones too, by name."""
        rows = await c.execute(sa.select(self.table).order_by(self.table.c.name))
        return [Member(row.name, row.instance, row.address, row.lease_until) for row in rows]

    async def register(self, c: AsyncConnection, member: Member) -> None:
        """Take this name, whoever had it. Raises IntegrityError when its other life does so at the same time."""
        row = self.table.c
        found = await c.execute(
            sa.update(self.table).where(row.name == member.name).values(_values(member))
        )
        if not found.rowcount:
            await c.execute(sa.insert(self.table).values(name=member.name, **_values(member)))

    async def renew(self, c: AsyncConnection, member: Member, *, now: int) -> bool:
        """Prolong a lease, or take over one that has ended; False when another life has the name."""
        row = self.table.c
        changed = await c.execute(
            sa.update(self.table)
            .where(
                row.name == member.name,
                (row.instance == member.instance) | (row.lease_until <= now),
            )
            .values(_values(member))
        )
        if changed.rowcount:
            return True
        found = (await c.execute(sa.select(row.instance).where(row.name == member.name))).first()
        if found is None:
            await c.execute(sa.insert(self.table).values(name=member.name, **_values(member)))
        return found is None

    async def forget(self, c: AsyncConnection, member: Member) -> None:
        """Remove a dead member, unless it prolonged its lease or its next life started meanwhile."""
        row = self.table.c
        await c.execute(
            sa.delete(self.table).where(
                row.name == member.name,
                row.instance == member.instance,
                row.lease_until <= member.lease_until,
            )
        )


def _values(member: Member) -> dict[str, Any]:
    return {
        "instance": member.instance,
        "address": member.address,
        "lease_until": member.lease_until,
    }
