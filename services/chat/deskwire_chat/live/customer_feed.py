"""Changed customers on their way to the agents and bots who talk to them.

What is sent is read after the change, and a client drops what is older than what it has. So it does no harm to tell of
a change that wasn't made, and nothing is lost when nobody knows whether a commit succeeded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from functools import partial
from typing import Final

from deskwire_chat import views
from deskwire_chat.live.audience import Audience
from deskwire_chat.log.group import CustomerKey
from deskwire_chat.store import conversations, customers
from deskwire_common.db import AWAY, Database, UnitOfWork
from deskwire_common.loops import every

_RETRY_SECONDS: Final = 1.0
_CHUNK: Final = 200


class CustomerFeed:
    """Sends customers who may have changed to the agents and bots that have an open conversation of theirs."""

    def __init__(self, db: Database, audience: Audience) -> None:
        self._db = db
        self._audience = audience
        self._unsent: dict[CustomerKey, bool] = {}
        self._wake = asyncio.Event()

    def changed(self, keys: Collection[CustomerKey], *, in_doubt: bool = False) -> None:
        """Have customers sent. `in_doubt`: the transaction that changed them may not have ended yet."""
        for key in keys:
            self._unsent[key] = in_doubt or self._unsent.get(key, False)
        if keys:
            self._wake.set()

    async def run(self) -> None:
        """Send until cancelled; outlasts a database that is away."""
        await every(
            _RETRY_SECONDS, self._round, failed="customers_not_sent", outlast=AWAY, wake=self._wake
        )

    async def _round(self) -> None:
        while self._unsent:
            some = dict(list(self._unsent.items())[:_CHUNK])
            for key in some:
                del self._unsent[key]
            try:
                await self._send(some)
            except BaseException:
                for key, in_doubt in some.items():
                    self._unsent[key] = in_doubt or self._unsent.get(key, False)
                raise

    async def _send(self, some: Mapping[CustomerKey, bool]) -> None:
        tenants: dict[str, list[str]] = {}
        for tenant, customer_id in sorted(some):
            tenants.setdefault(tenant, []).append(customer_id)
        for tenant, ids in tenants.items():
            if doubtful := [each for each in ids if some[tenant, each]]:
                await self._db.run(partial(_ended, tenant, doubtful))
            async with self._db.read() as c:
                users = await conversations.agents_of_customers(c, tenant, ids)
                found = await customers.get_many(c, tenant, list(users)) if users else {}
            for customer_id, customer in found.items():
                self._audience.deliver(users[customer_id], views.frames.customer_push(customer))


async def _ended(tenant: str, ids: Collection[str], uow: UnitOfWork) -> None:
    """Wait until no transaction holds these customers any more, as one that is in doubt holds those it changed."""
    await customers.lock_many(uow.connection, tenant, sorted(ids))
