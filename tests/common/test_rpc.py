"""The stages around every call, with a servicer that does what its request says, on a real server and channel."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from deskwire.chat.v1 import (
    agent_pb2,
    agent_service_pb2,
    agent_service_pb2_grpc,
    conversation_pb2,
    conversation_service_pb2,
)
from deskwire_common import rpc
from deskwire_common.auth import (
    ANY_TENANT,
    Admission,
    KeySet,
    Role,
    TokenSigner,
    TokenVerifier,
    current_principal,
)
from deskwire_common.errors import (
    DeskwireError,
    InvalidArgument,
    NotFound,
    from_rpc_error,
    to_status,
)
from deskwire_common.rpc import Access, RunningServer, make_channel, methods_of, start_server
from deskwire_common.validation import Validator

SERVICE = "deskwire.chat.v1.AgentService"
METHODS = methods_of([SERVICE])
GET, LIST = f"/{SERVICE}/GetAgent", f"/{SERVICE}/ListAgents"
AUTHORIZATION: dict[str, frozenset[Role]] = dict.fromkeys(METHODS, frozenset(Role))
AUTHORIZATION[GET] = frozenset({Role.AGENT, Role.OPERATOR})
KEYS = KeySet.generate()
SECRET = "what nobody outside may read"


class Agents(agent_service_pb2_grpc.AgentServiceServicer):
    """GetAgent does what the id says."""

    def __init__(self) -> None:
        self.served: list[str] = []
        self.cancelled = asyncio.Event()

    async def GetAgent(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        principal = current_principal()
        self.served.append(request.agent_id)
        match request.agent_id:
            case "fault":
                raise ZeroDivisionError(SECRET)
            case "missing":
                raise NotFound("no such agent", metadata={"agent_id": "missing"})
            case "slow":
                try:
                    await asyncio.Event().wait()
                finally:
                    self.cancelled.set()
        name = f"{principal.tenant} {principal.role.value} {principal.subject}"
        return agent_service_pb2.GetAgentResponse(
            agent=agent_pb2.Agent(agent_id=request.agent_id, display_name=name)
        )


@dataclass
class Served:
    """A running server and ways to call it."""

    server: RunningServer
    agents: Agents
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def channel(self, token: str = "") -> grpc.aio.Channel:
        target = f"127.0.0.1:{self.server.port}"
        self.channels.append(make_channel(target, token=(lambda: token) if token else None))
        return self.channels[-1]

    def stub(self, role: Role | None = Role.AGENT, tenant: str = "acme", ttl: float = 60) -> Any:
        signer = TokenSigner(KEYS)
        system = "crm:main" if role is Role.INTEGRATION else ""
        token = role and signer.mint(
            tenant=tenant, role=role, subject="ann", system=system, ttl=ttl
        )
        return agent_service_pb2_grpc.AgentServiceStub(self.channel(token or ""))

    async def refused(self, agent_id: str = "a", timeout: float = 10, **who: Any) -> DeskwireError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.stub(**who).GetAgent(get(agent_id), timeout=timeout)
        return from_rpc_error(caught.value)


def get(agent_id: str = "a") -> Any:
    return agent_service_pb2.GetAgentRequest(agent_id=agent_id)


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Served]:
    agents = Agents()

    def register(server: grpc.aio.Server) -> None:
        agent_service_pb2_grpc.add_AgentServiceServicer_to_server(agents, server)

    settings: dict[str, Any] = {"listen": "127.0.0.1:0", "authorization": AUTHORIZATION, **options}
    server = await start_server(
        registrars=[register],
        services=[SERVICE],
        verifier=TokenVerifier(KEYS),
        validator=Validator(),
        **settings,
    )
    made = Served(server, agents)
    try:
        yield made
    finally:
        for channel in made.channels:
            await channel.close()
        await server.stop(0)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as made:
        yield made


@pytest.mark.parametrize("method", METHODS)
async def test_a_method_without_a_rule_refuses_the_start(method: str) -> None:
    rules = {name: roles for name, roles in AUTHORIZATION.items() if name != method}
    with pytest.raises(ValueError, match=re.escape(method)):
        async with serving(authorization=rules):
            pass


async def test_a_taken_port_is_an_error_unless_it_is_shared(served: Served) -> None:
    listen = f"127.0.0.1:{served.server.port}"
    for reuse_port in (False, True):  # the first server doesn't share
        with pytest.raises(OSError, match=listen):
            async with serving(listen=listen, reuse_port=reuse_port):
                pass
    async with (
        serving(reuse_port=True) as one,
        serving(listen=f"127.0.0.1:{one.server.port}", reuse_port=True) as other,
    ):
        assert other.server.port == one.server.port


async def test_a_caller_is_who_their_token_says(served: Served) -> None:
    answer = await served.stub().GetAgent(get("a"))
    assert answer.agent.display_name == "acme agent ann"
    answer = await served.stub(Role.OPERATOR, "other").GetAgent(get("a"))
    assert answer.agent.display_name == "other operator ann"


async def test_who_calls_is_asked_before_what_is_asked(served: Served) -> None:
    """Neither a stranger nor the wrong role learns which requests are valid."""
    for agent_id in ("", "a"):
        assert (await served.refused(agent_id, role=None)).reason_name == "TOKEN_MISSING"
        expired = await served.refused(agent_id, ttl=-60)
        assert expired.reason_name == "TOKEN_EXPIRED"
        wrong = await served.refused(agent_id, role=Role.INTEGRATION)
        assert (wrong.code.name, wrong.reason_name) == ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED")
        assert not wrong.violations
    assert (await served.refused("")).reason_name == "INVALID_FIELD"
    assert served.agents.served == []


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic eDp5", "Bearer x", "x"])
async def test_an_authorization_that_is_none_is_refused(header: str, served: Served) -> None:
    stub = agent_service_pb2_grpc.AgentServiceStub(served.channel())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetAgent(get(), metadata=[("authorization", header)])
    assert from_rpc_error(caught.value).code is grpc.StatusCode.UNAUTHENTICATED
    assert served.agents.served == []


async def test_a_broken_rule_names_its_field(served: Served) -> None:
    refused = await served.refused("a" * 256)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [field for field, _ in refused.violations] == ["agent_id"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub().SetAgentStatus(
            agent_service_pb2.SetAgentStatusRequest(agent_id="a ", capacity=10_001)
        )
    fields = {name for name, _ in from_rpc_error(caught.value).violations}
    assert fields == {"request_id", "agent_id", "status", "capacity"}


@pytest.mark.parametrize("count", [20, 100, 1_000, 100_000])
def test_a_message_full_of_mistakes_is_refused_in_few_words(count: int) -> None:
    states = [conversation_pb2.ConversationState.ValueType(99)] * count
    request = conversation_service_pb2.ListConversationsRequest(states=states)
    with pytest.raises(InvalidArgument) as caught:
        Validator().check(request)
    assert 1 <= len(caught.value.violations) <= 20
    assert to_status(caught.value).ByteSize() < 4_096


async def test_bytes_that_are_no_message_are_the_callers_fault(served: Served) -> None:
    token = TokenSigner(KEYS).mint(tenant="acme", role=Role.AGENT, subject="ann")
    call: Any = served.channel(token).unary_unary(GET)
    for data in (b"\xff\xff", b"\x0a\x02\xff\xfe"):  # cut off, and text that is no UTF-8
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(data)
        error = from_rpc_error(caught.value)
        assert (error.code.name, error.reason_name) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert served.agents.served == []


async def test_a_domain_error_is_told_and_a_fault_is_not(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    told = await served.refused("missing")
    assert isinstance(told, NotFound)
    assert (told.message, told.metadata) == ("no such agent", {"agent_id": "missing"})
    fault = await served.refused("fault")
    assert (fault.code.name, fault.reason_name) == ("INTERNAL", "INTERNAL")
    assert SECRET not in fault.message
    assert "ZeroDivision" not in fault.message
    number = re.search(r"error id is ([0-9a-f]{16})$", fault.message)
    assert number
    printed = capsys.readouterr()
    assert number[1] in printed.out + printed.err  # where the operator finds it
    assert (await served.stub().GetAgent(get())).agent.agent_id == "a"


async def test_a_deadline_ends_the_work_too(served: Served) -> None:
    assert (await served.refused("slow", timeout=0.2)).code is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(10):
        await served.agents.cancelled.wait()


async def test_a_call_without_a_deadline_gets_one(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc.stages, "DEADLINE", 0.2)
    token = TokenSigner(KEYS).mint(tenant="acme", role=Role.AGENT, subject="ann")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.server.port}") as channel:
        stub = agent_service_pb2_grpc.AgentServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetAgent(get("slow"), metadata=[("authorization", f"Bearer {token}")])
    assert from_rpc_error(caught.value).reason_name == "DEADLINE_EXCEEDED"
    assert served.agents.cancelled.is_set()


async def test_the_suites_operators_and_a_tenants_are_two() -> None:
    async with serving(access=Access(suite={GET})) as served:
        stub = served.stub(Role.OPERATOR, ANY_TENANT)
        assert (await stub.GetAgent(get())).agent.display_name == "* operator ann"
        assert (await served.refused(role=Role.OPERATOR)).code.name == "PERMISSION_DENIED"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListAgents(agent_service_pb2.ListAgentsRequest())
        assert from_rpc_error(caught.value).reason_name == "ROLE_NOT_ALLOWED"


async def test_who_is_not_admitted_is_refused_before_validation() -> None:
    admission = Admission()
    admission.update(["closed"], [("acme", "bob")])
    async with serving(access=Access(admission=admission)) as served:
        for agent_id in ("", "a"):
            refused = await served.refused(agent_id, tenant="closed")
            assert (refused.code.name, refused.reason_name) == (
                "PERMISSION_DENIED",
                "TENANT_DISABLED",
            )
        assert (await served.stub().GetAgent(get())).agent.agent_id == "a"


async def test_health_says_not_serving_until_it_is_set_and_needs_no_token(served: Served) -> None:
    stub = health_pb2_grpc.HealthStub(served.channel())

    async def health() -> set[int]:
        asked = [health_pb2.HealthCheckRequest(service=name) for name in ("", SERVICE)]
        return {(await stub.Check(each)).status for each in asked}

    assert await health() == {health_pb2.HealthCheckResponse.NOT_SERVING}
    await served.server.set_serving(True)
    assert await health() == {health_pb2.HealthCheckResponse.SERVING}
    await served.server.set_serving(False)
    assert await health() == {health_pb2.HealthCheckResponse.NOT_SERVING}


async def test_reflection_lists_the_services_and_needs_no_token(served: Served) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel())
    call = stub.ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    async with asyncio.timeout(10):
        listed = [each async for each in call]
    names = {service.name for service in listed[0].list_services_response.service}
    assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
