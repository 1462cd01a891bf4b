"""Agents and how many conversations they have."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, Select, false, insert, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_chat.domain.agents import Agent, Status
from deskwire_chat.store.tables import agents


def _agent(row: Row[Any]) -> Agent:
    return Agent(
        tenant=row.tenant_id,
        agent_id=row.agent_id,
        display_name=row.display_name,
        status=Status(row.status),
        capacity=row.capacity,
        active=row.active,
        idle_since=row.idle_since,
        version=row.version,
        disabled=row.disabled,
        bot=row.bot,
    )


async def get(c: AsyncConnection, tenant: str, agent_id: str) -> Agent | None:
    """Return an agent of a tenant."""
    return await _one(c, _of(tenant, agent_id))


async def lock(c: AsyncConnection, tenant: str, agent_id: str) -> Agent | None:
    """Return an agent of a tenant, locked until the transaction ends."""
    return await _one(c, _of(tenant, agent_id).with_for_update())


def _of(tenant: str, agent_id: str) -> Select[Any]:
    return select(agents).where(agents.c.tenant_id == tenant, agents.c.agent_id == agent_id)


async def _one(c: AsyncConnection, statement: Select[Any]) -> Agent | None:
    row = (await c.execute(statement)).first()
    return None if row is None else _agent(row)


async def every(c: AsyncConnection) -> list[Agent]:
    """Return all agents of all tenants, for routing's index."""
    return [_agent(row) for row in await c.execute(select(agents))]


async def disabled(c: AsyncConnection) -> list[tuple[str, str]]:
    """Return (tenant, agent_id) of all who are disabled."""
    rows = await c.execute(
        select(agents.c.tenant_id, agents.c.agent_id).where(agents.c.disabled == true())
    )
    return [(row.tenant_id, row.agent_id) for row in rows]


async def page(c: AsyncConnection, tenant: str, *, after: str | None, limit: int) -> list[Agent]:
    """Return agents in the order of ids, from after `after`."""
    statement = select(agents).where(agents.c.tenant_id == tenant)
    if after is not None:
        statement = statement.where(agents.c.agent_id > after)
    rows = await c.execute(statement.order_by(agents.c.agent_id).limit(limit))
    return [_agent(row) for row in rows]


async def add(c: AsyncConnection, agent: Agent) -> None:
    """Insert a new agent; raises when it exists."""
    await c.execute(
        insert(agents).values(
            tenant_id=agent.tenant,
            agent_id=agent.agent_id,
            display_name=agent.display_name,
            status=int(agent.status),
            capacity=agent.capacity,
            active=agent.active,
            idle_since=agent.idle_since,
            version=agent.version,
            disabled=agent.disabled,
            bot=agent.bot,
        )
    )


async def save(c: AsyncConnection, agent: Agent) -> None:
    """Write what can change of an agent; this transaction has locked the row."""
    await c.execute(
        update(agents)
        .where(agents.c.tenant_id == agent.tenant, agents.c.agent_id == agent.agent_id)
        .values(
            display_name=agent.display_name,
            status=int(agent.status),
            capacity=agent.capacity,
            version=agent.version,
            disabled=agent.disabled,
        )
    )


async def take(c: AsyncConnection, tenant: str, agent_id: str, *, now: int) -> bool:
    """Count one conversation more; False when the agent is disabled, not available or has no room."""
    result = await c.execute(
        update(agents)
        .where(
            agents.c.tenant_id == tenant,
            agents.c.agent_id == agent_id,
            agents.c.status == int(Status.AVAILABLE),
            agents.c.disabled == false(),
            agents.c.active < agents.c.capacity,
        )
        .values(active=agents.c.active + 1, idle_since=now)
    )
    return bool(result.rowcount == 1)


async def free(c: AsyncConnection, tenant: str, agent_id: str) -> None:
    """Count one conversation less."""
    await c.execute(
        update(agents)
        .where(agents.c.tenant_id == tenant, agents.c.agent_id == agent_id, agents.c.active > 0)
        .values(active=agents.c.active - 1)
    )
