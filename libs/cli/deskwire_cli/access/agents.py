"""`deskwire agent`: the agents of a tenant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from deskwire.chat.v1 import agent_pb2, agent_service_pb2, agent_service_pb2_grpc
from deskwire_cli.operator import (
    JsonOption,
    NameOption,
    Operator,
    TenantOption,
    new_request_id,
    show,
)
from deskwire_cli.suite import TENANT

agent_app = typer.Typer(name="agent", help="Agents of a tenant.", no_args_is_help=True)

AgentId = Annotated[str, typer.Argument(help="The subject of the agent's tokens.")]


def agents(tenant: str) -> Operator:
    """Return an operator of the tenant for calls about its agents."""
    return Operator(agent_service_pb2_grpc.AgentServiceStub, tenant)


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
        request_id=new_request_id(), agent_id=agent, display_name=name, capacity=capacity, bot=bot
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
    request = agent_service_pb2.DisableAgentRequest(request_id=new_request_id(), agent_id=agent)
    show_agents([agents(tenant).call("DisableAgent", request).agent])


@agent_app.command("enable")
def enable_agent(agent: AgentId, tenant: TenantOption = TENANT) -> None:
    """Let a disabled agent in again."""
    request = agent_service_pb2.EnableAgentRequest(request_id=new_request_id(), agent_id=agent)
    show_agents([agents(tenant).call("EnableAgent", request).agent])
