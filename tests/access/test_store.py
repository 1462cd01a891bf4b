"""Tenants, keys and disabled agents in the tables of every database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import sqlalchemy as sa

from deskwire_chat.domain.access import IntegrationKey, Tenant
from deskwire_chat.domain.agents import Agent, Status
from deskwire_chat.domain.conversations import Conversation, State
from deskwire_chat.store import agents, conversations, keys, tenants
from deskwire_common import migrations
from deskwire_common.db import Database
from deskwire_common.ids import RandomIds

IDS = RandomIds()


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    await migrations.migrate(database_url, "deskwire_chat")
    database = await Database.open(database_url)
    await migrations.check_schema(database, "deskwire_chat")
    yield database
    await database.close()


def agent(agent_id: str, *, disabled: bool = False) -> Agent:
    return Agent("demo", agent_id, "Ада 🙂", Status.AVAILABLE, 5, 0, 1, 1, disabled)


def tenant(tenant_id: str, *, disabled: bool = False) -> Tenant:
    return Tenant(tenant_id, "Демо 🙂", disabled, 1, 10, 10)


def key(tenant_id: str) -> IntegrationKey:
    return IntegrationKey(
        IDS.uuid7(), tenant_id, "crm:x", "CRM", bytes(range(32)), False, 1, 10, 10
    )


def conversation(agent_id: str, state: State) -> Conversation:
    at = (1, 1 if agent_id else 0, 0)
    return Conversation(IDS.uuid7(), "demo", state, IDS.uuid7(), "v", agent_id, 1, 0, 1, *at)


async def test_tenants(db: Database) -> None:
    async with db.transaction() as uow:
        for each in (tenant("b"), tenant("A", disabled=True), tenant("c")):
            await tenants.add(uow.connection, each)
        await uow.commit()
    changed = replace(tenant("b"), disabled=True, version=2, updated_at=20)
    async with db.transaction() as uow:
        assert await tenants.lock(uow.connection, "b") == tenant("b")
        await tenants.save(uow.connection, changed)
        await uow.commit()
    async with db.read() as c:
        assert await tenants.get(c, "b") == changed
        assert await tenants.get(c, "B") is None
        assert sorted(await tenants.disabled(c)) == ["A", "b"]
        first = await tenants.page(c, after=None, limit=2)
        assert [each.tenant_id for each in first] == ["A", "b"]
        assert await tenants.page(c, after="b", limit=2) == [tenant("c")]


async def test_keys_are_of_one_tenant_and_in_order_of_age(db: Database) -> None:
    mine = [key("demo") for _ in range(3)]
    async with db.transaction() as uow:
        for each in (*reversed(mine), key("other")):
            await keys.add(uow.connection, each)
        await uow.commit()
    changed = replace(mine[0], revoked=True, version=2, updated_at=20)
    async with db.transaction() as uow:
        assert await keys.lock(uow.connection, "other", mine[0].key_id) is None
        assert await keys.lock(uow.connection, "demo", mine[0].key_id) == mine[0]
        await keys.save(uow.connection, changed)
        await uow.commit()
    async with db.read() as c:
        assert await keys.get(c, mine[0].key_id) == changed
        assert await keys.page(c, "demo", after=None, limit=2) == [changed, mine[1]]
        assert await keys.page(c, "demo", after=mine[1].key_id, limit=2) == [mine[2]]


async def test_a_disabled_agent_takes_nothing(db: Database) -> None:
    kept, queued = conversation("ann", State.ACTIVE), conversation("", State.QUEUED)
    lost, closed = conversation("bob", State.ACTIVE), conversation("bob", State.CLOSED)
    async with db.transaction() as uow:
        await agents.add(uow.connection, agent("ann"))
        await agents.add(uow.connection, agent("bob", disabled=True))
        await conversations.add(uow.connection, [kept, queued, lost, closed])
        assert await agents.take(uow.connection, "demo", "ann", now=1)
        assert not await agents.take(uow.connection, "demo", "bob", now=1)
        await uow.commit()
    async with db.read() as c:
        assert await agents.get(c, "demo", "bob") == agent("bob", disabled=True)
        assert await agents.disabled(c) == [("demo", "bob")]
        assert await conversations.of_disabled_agents(c) == [(lost.conversation_id, "bob")]


async def test_an_agent_is_let_in_unless_a_row_says_otherwise(db: Database) -> None:
    insert = (
        "INSERT INTO agents (tenant_id, agent_id, display_name, status, capacity, active, idle_since,"
        " version) VALUES ('demo', 'ann', 'Ада 🙂', 1, 5, 0, 1, 1)"
    )
    async with db.transaction() as uow:
        await uow.connection.execute(sa.text(insert))
        await uow.commit()
    async with db.read() as c:
        assert await agents.every(c) == [agent("ann")]
