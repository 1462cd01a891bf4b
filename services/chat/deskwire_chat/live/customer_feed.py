"""Changed customers on their way to the agents and bots who talk to them.

What is sent is read after the change, and a client drops what is older than what it has. So it does no harm to tell of
a change that wasn't made, and nothing is lost when nobody knows whether a commit succeeded.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from functools import partial

from deskwire_chat import views
from deskwire_chat.live.audience import Audience
from deskwire_chat.log.group import CustomerKey
from deskwire_chat.store import conversations, customers
from deskwire_common.backlog import Backlog
from deskwire_common.db import AWAY, Database, UnitOfWork


class CustomerFeed:
    """Sends customers who may have changed to the agents and bots that have an open conversation of theirs."""

    def __init__(self, db: Database, audience: Audience) -> None:
        self._db = db
        self._audience = audience
        self._changed = Backlog[CustomerKey, bool](
            self._send, join=operator.or_, failed="customers_not_sent", outlast=AWAY
        )

    def changed(self, keys: Collection[CustomerKey], *, in_doubt: bool = False) -> None:
        """Have customers sent. `in_doubt`: the transaction that changed them may not have ended yet."""
        for key in keys:
            self._changed.add(key, in_doubt)

    async def run(self) -> None:
        """Send until cancelled; outlasts a database that is away."""
        await self._changed.run()

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
