"""The use cases of tenants, for operators of the suite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from deskwire.chat.v1 import tenant_service_pb2 as tenants_pb
from deskwire_chat import domain, events, views
from deskwire_chat.actions.tools import Look, ResponseT, Tools
from deskwire_chat.domain.access import Tenant
from deskwire_chat.domain.actors import Actor
from deskwire_chat.store import tenants
from deskwire_common import texts
from deskwire_common.auth import current_principal
from deskwire_common.db import UnitOfWork
from deskwire_common.errors import AlreadyExists
from deskwire_common.pagination import page

TENANTS: Final = "deskwire.chat.v1.TenantService"


@dataclass(frozen=True, slots=True)
class TenantActions:
    """The use cases of tenants, for operators of the suite."""

    tools: Tools
    look: Look

    async def create(
        self, request: tenants_pb.CreateTenantRequest
    ) -> tenants_pb.CreateTenantResponse:
        """Create a tenant. Raises AlreadyExists, InvalidArgument, RequestIdReused."""
        who = Actor.of(current_principal())
        display_name = texts.line(request.display_name, "display_name")
        on = self.tools.occasion(who)
        tenant = Tenant(
            tenant_id=request.tenant_id,
            display_name=display_name,
            disabled=False,
            version=1,
            created_at=on.now,
            updated_at=on.now,
        )

        async def work(uow: UnitOfWork) -> tenants_pb.CreateTenantResponse:
            if await tenants.get(uow.connection, request.tenant_id) is not None:
                raise AlreadyExists(f"tenant {request.tenant_id} was created already")
            await tenants.add(uow.connection, tenant)
            await self.tools.outbox.add(uow, [events.tenant_created(on, tenant)])
            return tenants_pb.CreateTenantResponse(tenant=views.messages.tenant(tenant))

        return await self.tools.once(f"{TENANTS}/CreateTenant", request, work)

    async def get(self, request: tenants_pb.GetTenantRequest) -> tenants_pb.GetTenantResponse:
        """Return a tenant that was created. Raises NotFound (TENANT_NOT_FOUND)."""
        async with self.tools.db.read() as c:
            found = await tenants.get(c, request.tenant_id)
        if found is None:
            raise domain.access.tenant_not_found(request.tenant_id)
        return tenants_pb.GetTenantResponse(tenant=views.messages.tenant(found))

    async def list(self, request: tenants_pb.ListTenantsRequest) -> tenants_pb.ListTenantsResponse:
        """Return a page of tenants, by id. Raises InvalidArgument (INVALID_PAGE_TOKEN)."""
        async with self.tools.db.read() as c:
            found, token = await page(
                request,
                "ListTenants",
                {},
                shape=(str,),
                read=lambda key, limit: tenants.page(
                    c, after=str(key[0]) if key else None, limit=limit
                ),
                key=lambda item: (item.tenant_id,),
                view=views.messages.tenant,
            )
        return tenants_pb.ListTenantsResponse(tenants=found, next_page_token=token)

    async def disable(
        self, request: tenants_pb.DisableTenantRequest
    ) -> tenants_pb.DisableTenantResponse:
        """Disable a tenant. Raises NotFound, FailedPrecondition, VersionMismatch, RequestIdReused."""
        return await self._switch(
            request, "DisableTenant", tenants_pb.DisableTenantResponse, disabled=True
        )

    async def enable(
        self, request: tenants_pb.EnableTenantRequest
    ) -> tenants_pb.EnableTenantResponse:
        """Enable a tenant. Raises NotFound, FailedPrecondition, VersionMismatch, RequestIdReused."""
        return await self._switch(
            request, "EnableTenant", tenants_pb.EnableTenantResponse, disabled=False
        )

    async def _switch(
        self, request: Any, method: str, response: Callable[..., ResponseT], *, disabled: bool
    ) -> ResponseT:
        who = Actor.of(current_principal())

        async def work(uow: UnitOfWork) -> ResponseT:
            before = await tenants.lock(uow.connection, request.tenant_id)
            if before is None:
                raise domain.access.tenant_not_found(request.tenant_id)
            after, changes = domain.access.switched(
                before, disabled=disabled, expected_version=request.expected_version
            )
            on = self.tools.occasion(who)
            after = replace(after, updated_at=on.now)
            await tenants.save(uow.connection, after)
            await self.tools.outbox.add(uow, [events.tenant_switched(on, after, changes)])
            return response(tenant=views.messages.tenant(after))

        result = await self.tools.once(f"{TENANTS}/{method}", request, work)
        await self.look()
        return result
