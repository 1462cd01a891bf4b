"""`deskwire tenant`: the tenants of the running suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from deskwire.chat.v1 import tenant_service_pb2, tenant_service_pb2_grpc
from deskwire_cli.operator import (
    JsonOption,
    NameOption,
    Operator,
    format_time,
    new_request_id,
    show,
)
from deskwire_common.auth import ANY_TENANT

tenant_app = typer.Typer(name="tenant", help="Tenants of the suite.", no_args_is_help=True)

TenantId = Annotated[str, typer.Argument(help="What the tenant's tokens carry.")]


def tenants() -> Operator:
    """Return an operator of the suite."""
    return Operator(tenant_service_pb2_grpc.TenantServiceStub, ANY_TENANT)


def show_tenants(found: Sequence[Any], *, as_json: bool = False) -> None:
    show(
        found,
        ("tenant", "name", "state", "created"),
        lambda each: (
            each.tenant_id,
            each.display_name,
            "disabled" if each.disabled else "enabled",
            format_time(each.create_time),
        ),
        as_json=as_json,
    )


@tenant_app.command("create")
def create_tenant(tenant: TenantId, name: NameOption = "") -> None:
    """Make a tenant known, so that it can be disabled; it works without."""
    request = tenant_service_pb2.CreateTenantRequest(
        request_id=new_request_id(), tenant_id=tenant, display_name=name
    )
    show_tenants([tenants().call("CreateTenant", request).tenant])


@tenant_app.command("list")
def list_tenants(as_json: JsonOption = False) -> None:
    """Show the tenants that were created."""
    pages = tenants().pages("ListTenants", tenant_service_pb2.ListTenantsRequest())
    show_tenants([each for page in pages for each in page.tenants], as_json=as_json)


@tenant_app.command("disable")
def disable_tenant(tenant: TenantId) -> None:
    """Shut a tenant out of chat; its connections end."""
    request = tenant_service_pb2.DisableTenantRequest(request_id=new_request_id(), tenant_id=tenant)
    show_tenants([tenants().call("DisableTenant", request).tenant])


@tenant_app.command("enable")
def enable_tenant(tenant: TenantId) -> None:
    """Let a disabled tenant in again."""
    request = tenant_service_pb2.EnableTenantRequest(request_id=new_request_id(), tenant_id=tenant)
    show_tenants([tenants().call("EnableTenant", request).tenant])
