"""Finds the customers of visitors who open conversations in one transaction of the writer.

A visitor is the customer who has the token's subject, else the customer who has another id that the token vouches for,
else a new customer. What a token vouches for fills empty fields and links ids that nobody has. It never overwrites what
an agent or another system wrote, and never takes an id from another customer.
"""

from __future__ import annotations

from collections.abc import Iterable

from deskwire_chat import domain, events
from deskwire_chat.domain.actors import Actor
from deskwire_chat.domain.customers import Customer, Identity
from deskwire_chat.events import Occasion
from deskwire_chat.store import customers
from deskwire_common.db import UnitOfWork
from deskwire_common.events import DomainEvent
from deskwire_common.ids import Ids

_Key = tuple[str, Identity]


class Openings:
    """The visitors' customers. Call `load` before `customer_of`, and `flush` before the commit.

    `events` and `changed` are for the writer.
    """

    def __init__(self, ids: Ids, now: int, *, region: str) -> None:
        """`now` in microseconds; `region` is the region of mobile numbers without a leading +."""
        self._ids = ids
        self._now = now
        self._region = region
        self._owners: dict[_Key, str] = {}
        self._customers: dict[str, Customer] = {}
        self._before: dict[str, Customer | None] = {}
        self.events: list[DomainEvent] = []
        self.changed: list[tuple[str, str]] = []
        """The customers (tenant, customer_id) who existed before and were written with other values."""

    async def load(self, uow: UnitOfWork, openers: Iterable[Actor]) -> None:
        """Read and lock the known customers among visitors who may open a conversation."""
        wanted: dict[str, set[Identity]] = {}
        for who in openers:
            wanted.setdefault(who.tenant, set()).update(domain.customers.identities_of(who))
        for tenant, identities in wanted.items():
            owners = await customers.owners(uow.connection, tenant, identities)
            if owners:
                self._customers |= await customers.lock_many(
                    uow.connection, tenant, sorted(set(owners.values()))
                )
            self._owners |= {
                (tenant, identity): owner
                for identity, owner in owners.items()
                if owner in self._customers
            }

    def customer_of(self, who: Actor, *, traceparent: str, correlation_id: str) -> Customer:
        """Return the visitor's customer: found, changed or made."""
        identities = domain.customers.identities_of(who)
        owners = [self._owners.get((who.tenant, each)) for each in identities]
        owner = next((each for each in owners if each is not None), None)
        if owner is None:
            owner = self._made(who, traceparent, correlation_id)
        free = [each for each, has in zip(identities, owners, strict=True) if has is None]
        customer = self._customers[owner]
        after, changes = domain.customers.changed_customer(
            customer,
            domain.customers.filled(customer, who, default_region=self._region),
            add_identities=free[
                : max(0, domain.customers.MAX_IDENTITIES - len(customer.identities))
            ],
            now=self._now,
        )
        if changes:
            self._customers[owner] = after
            self._before.setdefault(owner, customer)
            on = self._occasion(who, traceparent)
            self.events.append(events.customer_updated(on, after, changes))
        self._owners |= {(who.tenant, each): owner for each in after.identities}
        return after

    def _made(self, who: Actor, traceparent: str, correlation_id: str) -> str:
        fresh = Customer(
            customer_id=self._ids.uuid7(),
            tenant=who.tenant,
            identities=tuple(sorted(domain.customers.identities_of(who))),
            created_at=self._now,
            updated_at=self._now,
        )
        values = domain.customers.filled(fresh, who, default_region=self._region)
        customer = domain.customers.with_values(fresh, values)
        self._customers[customer.customer_id] = customer
        self._owners |= {(who.tenant, each): customer.customer_id for each in customer.identities}
        self._before[customer.customer_id] = None
        on = self._occasion(who, traceparent)
        self.events.append(events.customer_created(on, customer, correlation_id=correlation_id))
        return customer.customer_id

    def _occasion(self, who: Actor, traceparent: str) -> Occasion:
        return Occasion(self._ids.uuid7(), self._now, who, traceparent)

    async def flush(self, uow: UnitOfWork) -> None:
        """Write the customers that were made or changed."""
        made = [self._customers[each] for each, before in self._before.items() if before is None]
        if made:
            await customers.add(uow.connection, made)
        for customer_id, before in self._before.items():
            if before is not None:
                await customers.save(uow.connection, before, self._customers[customer_id])
                self.changed.append((before.tenant, customer_id))
