"""The use cases of agents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from deskwire.chat.v1 import agent_service_pb2 as agents_pb
from deskwire_chat import domain, events, views
from deskwire_chat.actions.tools import Look, ResponseT, Tools
from deskwire_chat.domain.actors import Actor
from deskwire_chat.domain.agents import Agent, Status
from deskwire_chat.domain.changes import Change
from deskwire_chat.routing.router import Router
from deskwire_chat.store import agents
from deskwire_common import texts
from deskwire_common.auth import Principal, Role, current_principal
from deskwire_common.db import UnitOfWork
from deskwire_common.errors import (
    AlreadyExists,
    InvalidArgument,
    PermissionDenied,
)
from deskwire_common.pagination import page

AGENTS: Final = "deskwire.chat.v1.AgentService"


@dataclass(frozen=True, slots=True)
class AgentActions:
    """The use cases of agents, for the current principal and in its tenant."""

    tools: Tools
    router: Router
    look: Look

    async def create(self, request: agents_pb.CreateAgentRequest) -> agents_pb.CreateAgentResponse:
        """Create an agent, as AWAY. Raises AlreadyExists, InvalidArgument, RequestIdReused."""
        who = Actor.of(current_principal())
        display_name = texts.line(request.display_name, "display_name")
        on = self.tools.occasion(who)
        agent = Agent(
            tenant=who.tenant,
            agent_id=request.agent_id,
            display_name=display_name,
            status=Status.AWAY,
            capacity=request.capacity or domain.agents.DEFAULT_CAPACITY,
            active=0,
            idle_since=on.now,
            version=1,
            bot=request.bot,
        )

        async def work(uow: UnitOfWork) -> agents_pb.CreateAgentResponse:
            if await agents.get(uow.connection, who.tenant, request.agent_id) is not None:
                raise AlreadyExists(f"agent {request.agent_id} is known already")
            await agents.add(uow.connection, agent)
            connected = self.router.agents.is_connected(who.tenant, request.agent_id)
            event = events.agent_created(on, agent, connected=connected)
            await self.tools.outbox.add(uow, [event])
            return agents_pb.CreateAgentResponse(
                agent=views.messages.agent(agent, connected=connected)
            )

        response = await self.tools.once(f"{AGENTS}/CreateAgent", request, work)
        self.router.agent_changed(agent)
        return response

    async def disable(
        self, request: agents_pb.DisableAgentRequest
    ) -> agents_pb.DisableAgentResponse:
        """Disable an agent. Raises NotFound, FailedPrecondition, VersionMismatch, RequestIdReused."""
        return await self._switch(
            request, "DisableAgent", agents_pb.DisableAgentResponse, disabled=True
        )

    async def enable(self, request: agents_pb.EnableAgentRequest) -> agents_pb.EnableAgentResponse:
        """Enable an agent. Raises NotFound, FailedPrecondition, VersionMismatch, RequestIdReused."""
        return await self._switch(
            request, "EnableAgent", agents_pb.EnableAgentResponse, disabled=False
        )

    async def _switch(
        self, request: Any, method: str, response: Callable[..., ResponseT], *, disabled: bool
    ) -> ResponseT:
        who = Actor.of(current_principal())
        changed: list[Agent] = []

        async def work(uow: UnitOfWork) -> ResponseT:
            before = await agents.lock(uow.connection, who.tenant, request.agent_id)
            if before is None:
                raise domain.agents.agent_not_found(request.agent_id)
            after, changes = domain.access.switched(
                before, disabled=disabled, expected_version=request.expected_version
            )
            if not disabled:
                after, more = domain.agents.let_in_again(after)
                changes |= more
            await agents.save(uow.connection, after)
            # A disabled agent is disconnected by the time the answer is read.
            connected = not disabled and self.router.agents.is_connected(
                who.tenant, request.agent_id
            )
            on = self.tools.occasion(who)
            event = events.agent_switched(on, after, changes, connected=connected)
            await self.tools.outbox.add(uow, [event])
            changed[:] = [after]
            return response(agent=views.messages.agent(after, connected=connected))

        result = await self.tools.once(f"{AGENTS}/{method}", request, work)
        for agent in changed:
            self.router.agent_changed(agent)
        await self.look()
        return result

    async def set_status(
        self, request: agents_pb.SetAgentStatusRequest
    ) -> agents_pb.SetAgentStatusResponse:
        """Make an agent available or away.

        Raises PermissionDenied for another agent's id, AlreadyExists for a bot with an agent's id and the other way
        round, InvalidArgument, RequestIdReused.
        """
        principal = current_principal()
        who = Actor.of(principal)
        agent_id = _agent_meant(principal, request)
        display_name = texts.line(request.display_name, "display_name")
        changed: list[Agent] = []

        async def work(uow: UnitOfWork) -> agents_pb.SetAgentStatusResponse:
            before = await agents.lock(uow.connection, who.tenant, agent_id)
            on = self.tools.occasion(who)
            if before is None:
                name = display_name or (principal.name if agent_id == principal.subject else "")
                after = Agent(
                    tenant=who.tenant,
                    agent_id=agent_id,
                    display_name=name,
                    status=Status(request.status),
                    capacity=request.capacity or domain.agents.DEFAULT_CAPACITY,
                    active=0,
                    idle_since=on.now,
                    version=1,
                    bot=principal.role is Role.BOT,
                )
                changes = {"status": Change(None, domain.agents.status_name(after.status))}
                await agents.add(uow.connection, after)
            else:
                domain.agents.check_is(before, who)
                after, changes = domain.agents.changed_agent(
                    before,
                    status=Status(request.status),
                    capacity=request.capacity,
                    display_name=display_name,
                )
                if changes:
                    await agents.save(uow.connection, after)
            changed[:] = [after] if changes else []
            connected = self.router.agents.is_connected(who.tenant, agent_id)
            if changes:
                event = events.agent_status_changed(on, after, changes, connected=connected)
                await self.tools.outbox.add(uow, [event])
            return agents_pb.SetAgentStatusResponse(
                agent=views.messages.agent(after, connected=connected)
            )

        response = await self.tools.once(f"{AGENTS}/SetAgentStatus", request, work)
        for agent in changed:
            self.router.agent_changed(agent)
        if Status(request.status) is Status.AVAILABLE:
            self.router.agent_active(who.tenant, agent_id)
        return response

    async def get(self, request: agents_pb.GetAgentRequest) -> agents_pb.GetAgentResponse:
        """Return an agent of the tenant. Raises NotFound (AGENT_NOT_FOUND)."""
        tenant = current_principal().tenant
        async with self.tools.db.read() as c:
            found = await agents.get(c, tenant, request.agent_id)
        if found is None:
            raise domain.agents.agent_not_found(request.agent_id)
        return agents_pb.GetAgentResponse(agent=self._view(found))

    async def list(self, request: agents_pb.ListAgentsRequest) -> agents_pb.ListAgentsResponse:
        """Return a page of the tenant's agents, by id. Raises InvalidArgument (INVALID_PAGE_TOKEN)."""
        tenant = current_principal().tenant
        async with self.tools.db.read() as c:
            found, token = await page(
                request,
                "ListAgents",
                {"tenant": tenant},
                shape=(str,),
                read=lambda key, limit: agents.page(
                    c, tenant, after=str(key[0]) if key else None, limit=limit
                ),
                key=lambda item: (item.agent_id,),
                view=self._view,
            )
        return agents_pb.ListAgentsResponse(agents=found, next_page_token=token)

    def _view(self, agent: Agent) -> Any:
        return views.messages.agent(
            agent, connected=self.router.agents.is_connected(agent.tenant, agent.agent_id)
        )


def _agent_meant(principal: Principal, request: agents_pb.SetAgentStatusRequest) -> str:
    """Return the id of the agent whose status is set: the caller's own, or the one that an operator names."""
    if principal.role is Role.OPERATOR and not request.agent_id:
        raise InvalidArgument("name the agent", field="agent_id")
    own = {"", principal.subject}
    if principal.role in {Role.AGENT, Role.BOT} and request.agent_id not in own:
        raise PermissionDenied("an agent speaks for themselves only")
    return request.agent_id or principal.subject
