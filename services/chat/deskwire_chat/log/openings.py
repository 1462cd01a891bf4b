"""Visitors who open conversations in one transaction of the writer: whether they may, and who their customers are.

A visitor is the customer who has the token's subject, else the customer who has another id that the token vouches for,
else a new customer. What a token vouches for fills empty fields and links ids that nobody has. It never overwrites what
an agent or another system wrote, and never takes an id from another customer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from deskwire_chat import domain, events
from deskwire_chat.domain.actors import Actor
from deskwire_chat.domain.customers import Customer, Identity
from deskwire_chat.domain.openings import Opened, OpeningLimits
from deskwire_chat.domain.work import NOBODY, WorkItem
from deskwire_chat.events import Occasion
from deskwire_chat.store import conversations, customers
from deskwire_common.db import UnitOfWork
from deskwire_common.events import DomainEvent
from deskwire_common.ids import Ids

_Key = tuple[str, Identity]


class Openings:
    """The visitors' customers. Call `load` before `open`, and `flush` before the commit.

    `events` and `changed` are for the writer.
    """

    def __init__(self, ids: Ids, now: int, *, region: str, limits: OpeningLimits) -> None:
        """`now` in microseconds; `region` is the region of mobile numbers without a leading +."""
        self._ids = ids
        self._now = now
        self._region = region
        self._limits = limits
        self._opened: dict[tuple[str, str], Opened] = {}
        self._known_to: dict[str, frozenset[str]] = {}
        self._owners: dict[_Key, str] = {}
        self._customers: dict[str, Customer] = {}
        self._before: dict[str, Customer | None] = {}
        self.events: list[DomainEvent] = []
        self.changed: list[tuple[str, str]] = []
        """The customers (tenant, customer_id) who existed before and were written with other values."""

    async def load(
        self, uow: UnitOfWork, openers: Iterable[Actor], given: Iterable[WorkItem]
    ) -> None:
        """Read and lock the known customers of visitors who may open a conversation, and of those `given` to agents.

        What is open is read under the lock, so two transactions can't both find room for a visitor's last one, nor give
        two agents one customer. A visitor who is no customer yet becomes one in only one of two transactions; the
        other one begins again.
        """
        visitors: dict[str, dict[str, Actor]] = {}
        waiting: dict[str, set[str]] = {}
        for who in openers:
            visitors.setdefault(who.tenant, {})[who.subject] = who
        for item in given:
            waiting.setdefault(item.tenant, set()).add(item.customer_id)
        # In a fixed order, so that two transactions can't deadlock.
        for tenant in sorted(visitors.keys() | waiting.keys()):
            await self._load(uow, tenant, visitors.get(tenant, {}), waiting.get(tenant, set()))

    async def _load(
        self, uow: UnitOfWork, tenant: str, visitors: Mapping[str, Actor], waiting: Collection[str]
    ) -> None:
        c = uow.connection
        owners: dict[Identity, str] = {}
        if visitors:
            wanted = {
                each for who in visitors.values() for each in domain.customers.identities_of(who)
            }
            owners = await customers.owners(c, tenant, wanted)
        if ids := sorted({*owners.values(), *waiting}):
            self._customers |= await customers.lock_many(c, tenant, ids)
            agents = await conversations.agents_of_customers(c, tenant, ids)
            self._known_to |= {
                each: frozenset(user[2] for user in users) for each, users in agents.items()
            }
        self._owners |= {
            (tenant, identity): owner
            for identity, owner in owners.items()
            if owner in self._customers
        }
        if visitors:
            since = self._now - domain.openings.MINUTE if self._limits.per_minute else None
            opened = await conversations.opened_by(c, tenant, list(visitors), since=since)
            self._opened |= {(tenant, visitor): has for visitor, has in opened.items()}

    def open(self, who: Actor, *, traceparent: str, correlation_id: str) -> Customer:
        """Count one conversation more; return its visitor's customer: found, changed or made.

        Raises ResourceExhausted (TOO_MANY_CONVERSATIONS, TOO_MANY_OPENINGS); then nothing is counted or made.
        """
        has = self._opened[who.tenant, who.subject]
        domain.openings.check_may_open(has, self._limits, self._now)
        has.open += 1
        has.times.append(self._now)
        return self._customer_of(who, traceparent, correlation_id)

    def known_to(self, customer_id: str) -> frozenset[str]:
        """Return the agents and bots who have an open conversation of a customer."""
        return self._known_to.get(customer_id, NOBODY)

    def gave(self, customer_id: str, agent_id: str) -> None:
        """Note that an agent gets a conversation of a customer in this transaction."""
        self._known_to[customer_id] = self.known_to(customer_id) | {agent_id}

    def _customer_of(self, who: Actor, traceparent: str, correlation_id: str) -> Customer:
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
