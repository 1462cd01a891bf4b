"""`deskwire tenant`, `agent` and `key`: who may come in, as the running suite's chat has it."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table

from deskwire.chat.v1 import (
    agent_pb2,
    agent_service_pb2,
    agent_service_pb2_grpc,
    integration_key_service_pb2,
    integration_key_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
)
from deskwire_cli.machine.problem import Problem
from deskwire_cli.signing_keys import KeysFileOption, register, show_signing_keys
from deskwire_cli.suite import TENANT, load_suite
from deskwire_common.auth import ANY_TENANT, KeysError, Role
from deskwire_common.rpc import domain_errors, make_channel

SUBJECT: Final = "deskwire-cli"
_PAGE: Final = 500

tenant_app = typer.Typer(name="tenant", help="Tenants of the suite.", no_args_is_help=True)
agent_app = typer.Typer(name="agent", help="Agents of a tenant.", no_args_is_help=True)
key_app = typer.Typer(
    name="key",
    help="Integration keys (create, list, revoke) and signing keys (add, change, remove, rotate, new).",
    no_args_is_help=True,
)
register(key_app)

TenantOption = Annotated[str, typer.Option("--tenant", help="Whose.")]
NameOption = Annotated[str, typer.Option("--name", help="A name for people.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON array.")]
TenantId = Annotated[str, typer.Argument(help="What the tenant's tokens carry.")]
AgentId = Annotated[str, typer.Argument(help="The subject of the agent's tokens.")]


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator's calls to a service of chat; `tenant` is of the token."""

    stub: Callable[[Any], Any]
    tenant: str

    def call(self, method: str, request: Message) -> Any:
        """One call's response. Raises Problem, DeskwireError. Blocks."""
        return self.calls(method, request)[0]

    def pages(self, method: str, request: Any) -> list[Any]:
        """The responses of a list, to its last page. Raises Problem, DeskwireError. Blocks."""
        request.page_size = _PAGE
        return self.calls(method, request)

    def calls(self, method: str, request: Any) -> list[Any]:
        suite = load_suite()
        try:
            token = suite.token(Role.OPERATOR, SUBJECT, tenant=self.tenant, seconds=60)
        except (ValueError, KeysError) as error:
            raise Problem(str(error)) from None

        async def ask() -> list[Any]:
            channel = make_channel(suite.chat, token=lambda: token)
            answers: list[Any] = []
            try:
                with domain_errors():
                    call = getattr(self.stub(channel), method)
                    answers.append(await call(request))
                    while getattr(answers[-1], "next_page_token", ""):
                        request.page_token = answers[-1].next_page_token
                        answers.append(await call(request))
            finally:
                await channel.close()
            return answers

        return asyncio.run(ask())


def tenants() -> Operator:
    """An operator of the suite."""
    return Operator(tenant_service_pb2_grpc.TenantServiceStub, ANY_TENANT)


def agents(tenant: str) -> Operator:
    """An operator of the tenant, for its agents."""
    return Operator(agent_service_pb2_grpc.AgentServiceStub, tenant)


def keys(tenant: str) -> Operator:
    """An operator of the tenant, for its keys."""
    return Operator(integration_key_service_pb2_grpc.IntegrationKeyServiceStub, tenant)


def new_request() -> str:
    return str(uuid.uuid4())


# ------------------------------------------------------------------------------------------- showing


def show_tenants(found: Sequence[Any], *, as_json: bool = False) -> None:
    show(
        found,
        ("tenant", "name", "state", "created"),
        lambda each: (
            each.tenant_id,
            each.display_name,
            "disabled" if each.disabled else "enabled",
            when(each.create_time),
        ),
        as_json=as_json,
    )


def show_agents(found: Sequence[Any], *, as_json: bool = False) -> None:
    def row(each: Any) -> tuple[str, ...]:
        status = agent_pb2.AgentStatus.Name(each.status).removeprefix("AGENT_STATUS_").lower()
        return (
            each.agent_id,
            each.display_name,
            "disabled" if each.disabled else "enabled",
            status,
            "yes" if each.connected else "no",
            f"{each.active_conversations}/{each.capacity}",
        )

    titles = ("agent", "name", "state", "status", "connected", "conversations")
    show(found, titles, row, as_json=as_json)


def show_keys(found: Sequence[Any], *, as_json: bool = False) -> None:
    show(
        found,
        ("key", "system", "name", "state", "created"),
        lambda each: (
            each.key_id,
            each.system_id,
            each.display_name,
            "revoked" if each.revoked else "valid",
            when(each.create_time),
        ),
        as_json=as_json,
    )


def show(
    found: Sequence[Any],
    titles: Sequence[str],
    row: Callable[[Any], Sequence[str]],
    *,
    as_json: bool,
) -> None:
    """A table, or the messages' JSON form with all their fields."""
    if as_json:
        form = [
            MessageToDict(
                each, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            for each in found
        ]
        print(json.dumps(form, indent=2, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=True)
    for each in found:
        table.add_row(*row(each))
    Console(highlight=False, soft_wrap=True, markup=False).print(table)


def when(stamp: Timestamp) -> str:
    return stamp.ToDatetime().isoformat(" ", "seconds") + "Z"


# ------------------------------------------------------------------------------------------ tenants


@tenant_app.command("create")
def create_tenant(tenant: TenantId, name: NameOption = "") -> None:
    """Make a tenant known, so that it can be disabled; it works without."""
    request = tenant_service_pb2.CreateTenantRequest(
        request_id=new_request(), tenant_id=tenant, display_name=name
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
    request = tenant_service_pb2.DisableTenantRequest(request_id=new_request(), tenant_id=tenant)
    show_tenants([tenants().call("DisableTenant", request).tenant])


@tenant_app.command("enable")
def enable_tenant(tenant: TenantId) -> None:
    """Let a disabled tenant in again."""
    request = tenant_service_pb2.EnableTenantRequest(request_id=new_request(), tenant_id=tenant)
    show_tenants([tenants().call("EnableTenant", request).tenant])


# ------------------------------------------------------------------------------------------- agents


@agent_app.command("create")
def create_agent(
    agent: AgentId,
    tenant: TenantOption = TENANT,
    name: NameOption = "",
    capacity: Annotated[int, typer.Option(min=1, max=10_000, help="Conversations at once.")] = 5,
    bot: Annotated[bool, typer.Option("--bot", help="It is a program.")] = False,
) -> None:
    """Make an agent or a bot known before they come."""
    request = agent_service_pb2.CreateAgentRequest(
        request_id=new_request(), agent_id=agent, display_name=name, capacity=capacity, bot=bot
    )
    show_agents([agents(tenant).call("CreateAgent", request).agent])


@agent_app.command("list")
def list_agents(tenant: TenantOption = TENANT, as_json: JsonOption = False) -> None:
    """Show the agents of a tenant."""
    pages = agents(tenant).pages("ListAgents", agent_service_pb2.ListAgentsRequest())
    show_agents([each for page in pages for each in page.agents], as_json=as_json)


@agent_app.command("disable")
def disable_agent(agent: AgentId, tenant: TenantOption = TENANT) -> None:
    """Shut an agent out; their open conversations go to others."""
    request = agent_service_pb2.DisableAgentRequest(request_id=new_request(), agent_id=agent)
    show_agents([agents(tenant).call("DisableAgent", request).agent])


@agent_app.command("enable")
def enable_agent(agent: AgentId, tenant: TenantOption = TENANT) -> None:
    """Let a disabled agent in again."""
    request = agent_service_pb2.EnableAgentRequest(request_id=new_request(), agent_id=agent)
    show_agents([agents(tenant).call("EnableAgent", request).agent])


# --------------------------------------------------------------------------------------------- keys


@key_app.command("create")
def create_key(
    system: Annotated[str, typer.Option(help="The system's id, such as crm:main.")],
    tenant: TenantOption = TENANT,
    name: NameOption = "",
) -> None:
    """Print the secret of a new integration key: this once, it can't be read again."""
    request = integration_key_service_pb2.CreateIntegrationKeyRequest(
        request_id=new_request(), system_id=system, display_name=name
    )
    response = keys(tenant).call("CreateIntegrationKey", request)
    if not response.secret:
        # The call was repeated after an answer that was lost, and the secret with it.
        raise Problem(f"the secret of key {response.key.key_id} was lost: revoke it, try again")
    print(
        f"key {response.key.key_id} of {system} in tenant {tenant}; its secret is shown this once:",
        file=sys.stderr,
    )
    print(response.secret)


@key_app.command("list")
def list_keys(
    tenant: TenantOption = TENANT,
    as_json: JsonOption = False,
    signing: Annotated[
        bool, typer.Option("--signing", help="Those of the keys file, and what each may sign.")
    ] = False,
    keys_file: KeysFileOption = None,
) -> None:
    """Show the integration keys of a tenant, never their secrets."""
    if signing:
        show_signing_keys(keys_file, as_json=as_json)
        return
    request = integration_key_service_pb2.ListIntegrationKeysRequest()
    pages = keys(tenant).pages("ListIntegrationKeys", request)
    show_keys([each for page in pages for each in page.keys], as_json=as_json)


@key_app.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(help="The key's id, as `list` shows it.")],
    tenant: TenantOption = TENANT,
) -> None:
    """End an integration key for ever; its last token lapses within ten minutes."""
    request = integration_key_service_pb2.RevokeIntegrationKeyRequest(
        request_id=new_request(), key_id=key
    )
    show_keys([keys(tenant).call("RevokeIntegrationKey", request).key])
