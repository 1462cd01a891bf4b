"""Who may create, disable and revoke; once per request_id, and with its events."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deskwire.chat.v1 import agent_pb2
from deskwire.chat.v1 import agent_service_pb2 as agents_pb
from deskwire.chat.v1 import integration_key_service_pb2 as keys_pb
from deskwire.chat.v1 import tenant_service_pb2 as tenants_pb
from deskwire.events.v1 import access_events_pb2, chat_events_pb2
from deskwire_common import events, topics
from deskwire_common.auth import ANY_TENANT, Role
from support.access import Access
from support.refusals import refusal
from support.suite import new_id

DISABLED = {"disabled": (False, True)}
ENABLED = {"disabled": (True, False)}


def changes(data: Any) -> dict[str, tuple[bool, bool]]:
    return {
        name: (getattr(change, "from").bool_value, change.to.bool_value)
        for name, change in data.changed.items()
    }


async def lifecycle(stub: Any, thing: str, create: Any, **name: str) -> list[Any]:
    """Create, disable, enable, each also once more; the three states."""
    requests = {
        "Create": create,
        "Disable": getattr(
            tenants_pb if thing == "Tenant" else agents_pb, f"Disable{thing}Request"
        ),
        "Enable": getattr(tenants_pb if thing == "Tenant" else agents_pb, f"Enable{thing}Request"),
    }
    states = []
    for number, (verb, request) in enumerate(requests.items()):
        call = getattr(stub, f"{verb}{thing}")
        mine = request if verb == "Create" else request(request_id=new_id(), **name)
        if verb != "Create":
            wrong = request(request_id=new_id(), expected_version=number + 1, **name)
            assert await refusal(call(wrong)) == ("ABORTED", "VERSION_MISMATCH")
            mine.expected_version = number
        first = await call(mine)
        assert await call(mine) == first
        states.append(getattr(first, thing.lower()))
        mine.request_id = new_id()
        if verb == "Create":
            assert await refusal(call(mine)) == ("ALREADY_EXISTS", "ALREADY_EXISTS")
        else:
            mine.expected_version = 0
            assert await refusal(call(mine)) == ("FAILED_PRECONDITION", "INVALID_STATE")
    assert [(each.version, each.disabled) for each in states] == [(1, False), (2, True), (3, False)]
    return states


async def test_a_tenant_is_created_disabled_and_enabled(everywhere: Access) -> None:
    stub, tenant = everywhere.tenants(), everywhere.desk.tenant
    missing = tenants_pb.DisableTenantRequest(request_id=new_id(), tenant_id=tenant)
    assert await refusal(stub.DisableTenant(missing)) == ("NOT_FOUND", "TENANT_NOT_FOUND")
    get = tenants_pb.GetTenantRequest(tenant_id=tenant)
    assert await refusal(stub.GetTenant(get)) == ("NOT_FOUND", "TENANT_NOT_FOUND")

    create = tenants_pb.CreateTenantRequest(
        request_id=new_id(), tenant_id=tenant, display_name="Ваза 🙂"
    )
    states = await lifecycle(stub, "Tenant", create, tenant_id=tenant)
    assert states[0].display_name == "Ваза 🙂"
    assert (await stub.GetTenant(get)).tenant == states[-1]
    listed = await stub.ListTenants(tenants_pb.ListTenantsRequest())
    assert list(listed.tenants) == [states[-1]]

    # The events are the tenant's own, and say what the calls said.
    found = await everywhere.events(topics.ACCESS.name, 3)
    types = ["tenant_created", "tenant_disabled", "tenant_enabled"]
    assert [each.event_type for each in found] == types
    assert [(each.subject, each.sequence) for each in found] == [(tenant, n) for n in (1, 2, 3)]
    assert {each.actor.subject for each in found} == {"root"}
    created, disabled, enabled = (events.unpack(each) for each in found)
    assert created == access_events_pb2.TenantCreated(tenant=states[0])
    assert (disabled.tenant, changes(disabled)) == (states[1], DISABLED)
    assert (enabled.tenant, changes(enabled)) == (states[2], ENABLED)


async def test_an_agent_is_created_disabled_and_enabled(everywhere: Access) -> None:
    stub = everywhere.agents()
    missing = agents_pb.DisableAgentRequest(request_id=new_id(), agent_id="bob")
    assert await refusal(stub.DisableAgent(missing)) == ("NOT_FOUND", "AGENT_NOT_FOUND")
    create = agents_pb.CreateAgentRequest(
        request_id=new_id(), agent_id="bob", display_name="Боб 🙂", capacity=7
    )
    states = await lifecycle(stub, "Agent", create, agent_id="bob")
    assert (states[0].display_name, states[0].capacity) == ("Боб 🙂", 7)
    assert states[0].status == agent_pb2.AGENT_STATUS_AWAY
    assert (await stub.GetAgent(agents_pb.GetAgentRequest(agent_id="bob"))).agent == states[-1]

    found = await everywhere.events(topics.AGENTS.name, 3)
    types = ["agent_created", "agent_disabled", "agent_enabled"]
    assert [each.event_type for each in found] == types
    assert [each.sequence for each in found] == [1, 2, 3]
    assert {each.subject for each in found} == {f"{everywhere.desk.tenant}/bob"}
    created, disabled, enabled = (events.unpack(each) for each in found)
    assert created == chat_events_pb2.AgentCreated(agent=states[0])
    assert (disabled.agent, changes(disabled)) == (states[1], DISABLED)
    assert (enabled.agent, changes(enabled)) == (states[2], ENABLED)


async def test_a_thing_is_created_once_by_many(everywhere: Access) -> None:
    tenants, agents = everywhere.tenants(), everywhere.agents()
    for call, make in (
        (tenants.CreateTenant, lambda: tenants_pb.CreateTenantRequest(tenant_id="many")),
        (agents.CreateAgent, lambda: agents_pb.CreateAgentRequest(agent_id="many")),
    ):
        requests = [make() for _ in range(6)]
        for request in requests:
            request.request_id = new_id()
        results = await asyncio.gather(*map(call, requests), return_exceptions=True)
        assert sum(not isinstance(each, BaseException) for each in results) == 1


async def test_pages(access: Access) -> None:
    tenants, keys = access.tenants(), access.keys()
    for name in ("t3", "t1", "t2"):
        await tenants.CreateTenant(
            tenants_pb.CreateTenantRequest(request_id=new_id(), tenant_id=name)
        )
        await keys.CreateIntegrationKey(
            keys_pb.CreateIntegrationKeyRequest(request_id=new_id(), system_id=name)
        )

    async def pages(call: Any, request: Any, field: str, name: str) -> list[list[str]]:
        found = []
        while True:
            response = await call(request)
            found.append([getattr(each, name) for each in getattr(response, field)])
            if not response.next_page_token:
                return found
            request.page_token = response.next_page_token

    listed = tenants_pb.ListTenantsRequest(page_size=2)
    assert await pages(tenants.ListTenants, listed, "tenants", "tenant_id") == [
        ["t1", "t2"],
        ["t3"],
    ]
    shown = keys_pb.ListIntegrationKeysRequest(page_size=2)
    assert await pages(keys.ListIntegrationKeys, shown, "keys", "system_id") == [
        ["t3", "t1"],
        ["t2"],
    ]
    # A token is good for its own list only.
    shown.page_token = listed.page_token
    expected = ("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN")
    assert await refusal(keys.ListIntegrationKeys(shown)) == expected


CREATE_KEY = keys_pb.CreateIntegrationKeyRequest(request_id="r", system_id="crm:x")


@pytest.mark.parametrize("role", [each for each in Role if each is not Role.OPERATOR])
async def test_only_operators_manage(access: Access, role: Role) -> None:
    # Services may name all tenants, too: that isn't enough.
    any_tenant = ANY_TENANT if role is Role.SERVICE else access.desk.tenant
    more = {"system": "crm:x"} if role is Role.INTEGRATION else {}
    channel = access.desk.channel(role, "x", tenant=any_tenant, **more)
    for stub, method, request in (
        (access.tenants(), "CreateTenant", tenants_pb.CreateTenantRequest),
        (access.agents(), "DisableAgent", agents_pb.DisableAgentRequest),
        (access.keys(), "CreateIntegrationKey", keys_pb.CreateIntegrationKeyRequest),
    ):
        mine = type(stub)(channel)
        answer = await refusal(getattr(mine, method)(request(request_id="r")))
        assert answer == ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED")


async def test_operators_of_the_suite_and_of_a_tenant_are_two(access: Access) -> None:
    denied = ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED")
    of_tenant = access.tenants(tenant=access.desk.tenant)
    assert await refusal(of_tenant.ListTenants(tenants_pb.ListTenantsRequest())) == denied
    agents, keys = access.agents(tenant=ANY_TENANT), access.keys(tenant=ANY_TENANT)
    assert await refusal(agents.ListAgents(agents_pb.ListAgentsRequest())) == denied
    assert await refusal(keys.CreateIntegrationKey(CREATE_KEY)) == denied


async def test_what_cannot_be_a_name_is_refused(access: Access) -> None:
    tenants, agents = access.tenants(), access.agents()
    create = tenants_pb.CreateTenantRequest
    for call, request in (
        (tenants.CreateTenant, create(request_id="r", tenant_id="*")),
        (tenants.CreateTenant, create(request_id="r", tenant_id="")),
        (tenants.CreateTenant, create(request_id="r", tenant_id="t", display_name="a\nb")),
        (tenants.CreateTenant, create(tenant_id="t")),
        (agents.CreateAgent, agents_pb.CreateAgentRequest(request_id="r", agent_id="a\u00e9")),
    ):
        assert await refusal(call(request)) == ("INVALID_ARGUMENT", "INVALID_FIELD")
