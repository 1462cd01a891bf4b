"""Random keys that all hubs of a database share."""

from __future__ import annotations

import sqlalchemy as sa

from deskwire_common import db
from deskwire_common.db import UnitOfWork
from deskwire_events.store.tables import hub_keys


async def shared(uow: UnitOfWork, name: str, fresh: bytes) -> bytes:
    """The key of a name; `fresh` becomes it when there is none."""
    await db.insert_if_absent(uow, hub_keys, {"name": name, "secret": fresh})
    query = sa.select(hub_keys.c.secret).where(hub_keys.c.name == name)
    return bytes((await uow.execute(query)).scalar_one())
