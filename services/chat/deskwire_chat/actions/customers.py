"""The use cases of customers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from deskwire.chat.v1 import customer_pb2
from deskwire.chat.v1 import customer_service_pb2 as customers_pb
from deskwire_chat import domain, events, views
from deskwire_chat.actions.tools import Tools
from deskwire_chat.domain.actors import Actor
from deskwire_chat.domain.customers import Customer, Identity
from deskwire_chat.log.group import CustomersChanged
from deskwire_chat.store import customers
from deskwire_common.auth import current_principal
from deskwire_common.db import UnitOfWork, WriteConflict
from deskwire_common.errors import (
    InvalidArgument,
)
from deskwire_common.pagination import page

AnswerT = TypeVar(
    "AnswerT", customers_pb.UpdateCustomerResponse, customers_pb.UpsertCustomerResponse
)

CUSTOMERS: Final = "deskwire.chat.v1.CustomerService"


@dataclass(frozen=True, slots=True)
class CustomerActions:
    """The use cases of customers, for the current principal and in its tenant."""

    tools: Tools
    notify: CustomersChanged
    default_region: str = ""

    async def get(
        self, request: customers_pb.GetCustomerRequest
    ) -> customers_pb.GetCustomerResponse:
        """Return a customer of the tenant. Raises NotFound (CUSTOMER_NOT_FOUND)."""
        async with self.tools.db.read() as c:
            found = await customers.get(c, current_principal().tenant, request.customer_id)
        if found is None:
            raise domain.customers.customer_not_found(request.customer_id)
        return customers_pb.GetCustomerResponse(customer=views.messages.customer(found))

    async def lookup(
        self, request: customers_pb.LookupCustomerRequest
    ) -> customers_pb.LookupCustomerResponse:
        """Return the customer who has an identity. Raises NotFound (CUSTOMER_NOT_FOUND)."""
        tenant = current_principal().tenant
        asked = request.identity
        identity = domain.customers.identity_of(asked.namespace, asked.value, "identity.value")
        async with self.tools.db.read() as c:
            owner = (await customers.owners(c, tenant, [identity])).get(identity)
            found = await customers.get(c, tenant, owner) if owner else None
        if found is None:
            raise domain.customers.customer_not_found(f"{identity.namespace}/{identity.value}")
        return customers_pb.LookupCustomerResponse(customer=views.messages.customer(found))

    async def list(
        self, request: customers_pb.ListCustomersRequest
    ) -> customers_pb.ListCustomersResponse:
        """Return a page of the tenant's customers, oldest first. Raises InvalidArgument (INVALID_PAGE_TOKEN)."""
        tenant = current_principal().tenant
        async with self.tools.db.read() as c:
            found, token = await page(
                request,
                "ListCustomers",
                {"tenant": tenant},
                shape=(str,),
                read=lambda key, limit: customers.page(
                    c, tenant, after=str(key[0]) if key else None, limit=limit
                ),
                key=lambda item: (item.customer_id,),
                view=views.messages.customer,
            )
        return customers_pb.ListCustomersResponse(customers=found, next_page_token=token)

    async def update(
        self, request: customers_pb.UpdateCustomerRequest
    ) -> customers_pb.UpdateCustomerResponse:
        """Change some fields; push the customer to agents who have an open conversation of theirs.

        Raises NotFound, VersionMismatch, InvalidArgument (INVALID_UPDATE_MASK), RequestIdReused.
        """
        who = Actor.of(current_principal())
        values = self.values_of(
            request.customer, domain.customers.check_mask(request.update_mask.paths)
        )

        async def work(uow: UnitOfWork, changed: set[str]) -> customers_pb.UpdateCustomerResponse:
            before = await customers.lock(uow.connection, who.tenant, request.customer.customer_id)
            if before is None:
                raise domain.customers.customer_not_found(request.customer.customer_id)
            domain.changes.check_version(before.version, request.expected_version)
            after = await self._save(uow, before, values, (), who, changed)
            return customers_pb.UpdateCustomerResponse(customer=views.messages.customer(after))

        return await self._once("UpdateCustomer", request, work)

    async def upsert(
        self, request: customers_pb.UpsertCustomerRequest
    ) -> customers_pb.UpsertCustomerResponse:
        """Create or update the customer that has one of the identities.

        Raises FailedPrecondition (IDENTITY_CONFLICT), InvalidArgument (INVALID_UPDATE_MASK), RequestIdReused.
        """
        who = Actor.of(current_principal())
        values = self.values_of(
            request.customer, domain.customers.check_mask(request.update_mask.paths)
        )
        identities = self.identities_of(request.customer)

        async def work(uow: UnitOfWork, changed: set[str]) -> customers_pb.UpsertCustomerResponse:
            owners = await customers.owners(uow.connection, who.tenant, identities)
            found = sorted(set(owners.values()))
            if len(found) > 1:
                raise domain.customers.identity_conflict(found[0], found[1])
            if not found:
                return await self._create(uow, values, identities, who, request)
            before = await customers.lock(uow.connection, who.tenant, found[0])
            if before is None:
                raise WriteConflict("a customer disappeared; try again")
            if not await self._newer(uow, before.customer_id, who.origin, request):
                return customers_pb.UpsertCustomerResponse(customer=views.messages.customer(before))
            after = await self._save(uow, before, values, identities, who, changed)
            return customers_pb.UpsertCustomerResponse(customer=views.messages.customer(after))

        return await self._once("UpsertCustomer", request, work)

    async def _once(
        self, method: str, request: Any, work: Callable[[UnitOfWork, set[str]], Awaitable[AnswerT]]
    ) -> AnswerT:
        """Do `work` once per request; have the customer whom it changed sent to the agents who talk to them.

        `work` adds the customer to a set. A repeated request has its customer sent again, as the commit of the first
        one may have been in doubt.
        """
        changed: set[str] = set()
        done = False

        async def attempt(uow: UnitOfWork) -> AnswerT:
            nonlocal done
            answer = await work(uow, changed)
            done = True
            return answer

        tenant = current_principal().tenant
        try:
            answer = await self.tools.once(f"{CUSTOMERS}/{method}", request, attempt)
        except BaseException:
            self.notify({(tenant, each) for each in changed}, in_doubt=True)
            raise
        if not done:
            changed.add(answer.customer.customer_id)
        self.notify({(tenant, each) for each in changed})
        return answer

    async def _create(
        self,
        uow: UnitOfWork,
        values: dict[str, str],
        identities: tuple[Identity, ...],
        who: Actor,
        request: customers_pb.UpsertCustomerRequest,
    ) -> customers_pb.UpsertCustomerResponse:
        on = self.tools.occasion(who)
        fresh = Customer(
            customer_id=self.tools.ids.uuid7(),
            tenant=who.tenant,
            identities=identities,
            created_at=on.now,
            updated_at=on.now,
        )
        customer = domain.customers.with_values(fresh, values)
        await customers.add(uow.connection, [customer])
        if request.source_version:
            await customers.save_source_version(
                uow.connection,
                customer.customer_id,
                who.origin,
                request.source_writer,
                request.source_version,
                known=False,
            )
        await self.tools.outbox.add(uow, [events.customer_created(on, customer)])
        return customers_pb.UpsertCustomerResponse(
            customer=views.messages.customer(customer), created=True
        )

    async def _newer(
        self,
        uow: UnitOfWork,
        customer_id: str,
        system: str,
        request: customers_pb.UpsertCustomerRequest,
    ) -> bool:
        """Note the version that a system's writer gives; return False when it is older than its last one."""
        version, writer = request.source_version, request.source_writer
        if not version:
            return True
        known = await customers.source_version(uow.connection, customer_id, system, writer)
        if known is not None and version < known:
            return False
        if known != version:
            await customers.save_source_version(
                uow.connection, customer_id, system, writer, version, known=known is not None
            )
        return True

    async def _save(
        self,
        uow: UnitOfWork,
        before: Customer,
        values: dict[str, str],
        identities: Sequence[Identity],
        who: Actor,
        changed: set[str],
    ) -> Customer:
        on = self.tools.occasion(who)
        after, changes = domain.customers.changed_customer(
            before, values, add_identities=identities, now=on.now
        )
        if not changes:
            return before
        changed.add(before.customer_id)
        await customers.save(uow.connection, before, after)
        await self.tools.outbox.add(uow, [events.customer_updated(on, after, changes)])
        return after

    def values_of(self, customer: customer_pb2.Customer, fields: Sequence[str]) -> dict[str, str]:
        """Return the values of some fields, as they are kept. Raises InvalidArgument."""
        given = {name: str(getattr(customer, name)) for name in fields}
        return domain.customers.kept_values(given, default_region=self.default_region)

    def identities_of(self, customer: customer_pb2.Customer) -> tuple[Identity, ...]:
        """Return the identities of a request, as they are kept. Raises InvalidArgument when there is none."""
        if not customer.identities:
            raise InvalidArgument("name at least one identity", field="customer.identities")
        identity_of = domain.customers.identity_of
        found = {
            identity_of(each.namespace, each.value, f"customer.identities[{place}].value")
            for place, each in enumerate(customer.identities)
        }
        return tuple(sorted(found))
