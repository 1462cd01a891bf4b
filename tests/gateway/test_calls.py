"""Unary calls on a connection: what an agent's desk in a browser does without gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import Default

import deskwire_chat.api
import deskwire_gateway.app
from deskwire.chat.v1 import (
    agent_pb2,
    agent_service_pb2,
    agent_service_pb2_grpc,
    conversation_pb2,
    conversation_service_pb2,
    customer_pb2,
    customer_service_pb2,
    customer_service_pb2_grpc,
)
from deskwire.gateway.v1 import frame_pb2
from deskwire_client import Refused
from deskwire_common.auth import Role
from deskwire_common.errors import from_rpc_error
from deskwire_common.lifecycle import running
from deskwire_gateway.calls import METHODS
from support import eventually
from support.otlp import receiver
from support.relay import Relay, relay
from support.suite import Desk, Start, gateway_settings, new_id
from support.wire import Wire, reason, wire

SET_STATUS = "AgentService/SetAgentStatus"
GET_AGENT = "AgentService/GetAgent"
LIST_MESSAGES = "ConversationService/ListMessages"
#: Services of chat that nobody calls over a connection: the operator's, and those of machines.
NOT_PASSED_ON = {
    f"deskwire.chat.v1.{name}"
    for name in ("TenantService", "IntegrationKeyService", "HistoryService")
}


def available(**more: Any) -> agent_service_pb2.SetAgentStatusRequest:
    return agent_service_pb2.SetAgentStatusRequest(
        request_id=new_id(), status=agent_pb2.AGENT_STATUS_AVAILABLE, capacity=5, **more
    )


def messages_of(conversation: str, **more: Any) -> conversation_service_pb2.ListMessagesRequest:
    return conversation_service_pb2.ListMessagesRequest(conversation_id=conversation, **more)


def get(agent: str) -> agent_service_pb2.GetAgentRequest:
    return agent_service_pb2.GetAgentRequest(agent_id=agent)


def listed(result: frame_pb2.RpcResult) -> list[str]:
    """The texts of a ListMessages."""
    assert result.WhichOneof("outcome") == "response", result
    found = conversation_service_pb2.ListMessagesResponse.FromString(result.response)
    return [each.content.text for each in found.messages]


def why(result: frame_pb2.RpcResult) -> tuple[str, bool]:
    """Reason of a call that failed, and whether it may succeed later; the text says what to do."""
    assert result.WhichOneof("outcome") == "error", result
    assert result.error.message
    return reason(result.error.reason), result.error.temporary


async def talk(d: Desk, visitor: Wire, text: str = "hello") -> str:
    """A conversation of a visitor."""
    conversation = new_id()
    await visitor.send(conversation, text)
    await visitor.hear("send_ack")
    return conversation


async def cut(broken: Wire) -> None:
    """As when the network goes away."""
    broken.socket.transport.abort()
    await broken.socket.wait_closed()


@asynccontextmanager
async def behind(d: Desk, valkey: str, keys_file: Path) -> AsyncIterator[tuple[Desk, Relay]]:
    """The same desk through a gateway whose way to chat can be slow or broken."""
    async with relay(d.chat.port) as way:
        settings = gateway_settings(way.port, valkey, keys_file)
        async with running("gateway", settings, deskwire_gateway.app.build) as gateway:
            yield Desk(d.signer, d.chat, gateway, d.stack, d.tenant), way
            way.release()


async def test_an_agents_day_on_one_connection(start: Start) -> None:
    async with (
        start() as d,
        wire(d, d.token(Role.AGENT, "alice", name="Alice")) as desk,
        wire(d, d.token(Role.VISITOR, "1")) as visitor,
    ):
        assert desk.welcome.max_calls == 8
        await desk.call(1, SET_STATUS, available())
        status = agent_service_pb2.SetAgentStatusResponse.FromString(
            (await desk.result(1)).response
        )
        assert (status.agent.agent_id, status.agent.capacity) == ("alice", 5)
        conversation = await talk(d, visitor)
        while not (await desk.hear("push")).HasField("message"):
            pass
        await desk.call(2, LIST_MESSAGES, messages_of(conversation))
        assert listed(await desk.result(2))[0] == "hello"
        close = conversation_service_pb2.CloseConversationRequest(
            request_id=new_id(), conversation_id=conversation
        )
        for number in (3, 4):  # said twice, done once
            await desk.call(number, "ConversationService/CloseConversation", close)
            closed = conversation_service_pb2.CloseConversationResponse.FromString(
                (await desk.result(number)).response
            )
            assert closed.conversation.state == conversation_pb2.CONVERSATION_STATE_CLOSED
        while (
            await visitor.hear("push")
        ).conversation.state != conversation_pb2.CONVERSATION_STATE_CLOSED:
            pass


async def test_a_failure_says_what_it_says_over_grpc(start: Start) -> None:
    async with (
        start() as d,
        wire(d, d.token(Role.AGENT, "alice")) as desk,
        wire(d, d.token(Role.VISITOR, "1")) as visitor,
    ):
        await desk.call(1, SET_STATUS, available())
        await desk.result(1)
        await talk(d, visitor)
        customer_id = (await pushed(desk, "conversation")).conversation.customer_id
        customer = customer_pb2.Customer(customer_id=customer_id, display_name="Ann")
        update = customer_service_pb2.UpdateCustomerRequest(
            request_id=new_id(), customer=customer, expected_version=77
        )
        update.update_mask.paths.append("display_name")
        channel = d.channel(Role.AGENT, "alice")
        agents = agent_service_pb2_grpc.AgentServiceStub(channel)
        customers = customer_service_pb2_grpc.CustomerServiceStub(channel)
        cases = {
            "VERSION_MISMATCH": ("CustomerService/UpdateCustomer", customers, update),
            "INVALID_FIELD": (SET_STATUS, agents, agent_service_pb2.SetAgentStatusRequest()),
            "AGENT_NOT_FOUND": (GET_AGENT, agents, get("nobody")),
            "ROLE_NOT_ALLOWED": (
                "AgentService/DisableAgent",
                agents,
                agent_service_pb2.DisableAgentRequest(request_id="1", agent_id="alice"),
            ),
        }
        for number, (expected, (method, stub, request)) in enumerate(cases.items(), 2):
            await desk.call(number, method, request)
            result = await desk.result(number)
            assert why(result) == (expected, False)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await getattr(stub, method.rpartition("/")[2])(request)
            same = from_rpc_error(raised.value)
            assert same.reason_name == expected
            assert result.error.message == same.message
            assert dict(result.error.metadata) == same.metadata
            assert [(v.field, v.description) for v in result.error.violations] == same.violations
        await desk.call(9, "CustomerService/UpdateCustomer", update)
        assert (await desk.result(9)).error.metadata["current_version"] == "1"
        await desk.call(10, SET_STATUS, agent_service_pb2.SetAgentStatusRequest())
        fields = {each.field for each in (await desk.result(10)).error.violations}
        assert "request_id" in fields
        # What isn't a message of the method's type.
        await desk.say(
            rpc=frame_pb2.Rpc(id=11, method=f"/deskwire.chat.v1.{GET_AGENT}", request=b"\xff\xff")
        )
        assert why(await desk.result(11)) == ("INVALID_FIELD", False)


async def pushed(desk: Wire, subject: str) -> frame_pb2.Push:
    while True:
        push: frame_pb2.Push = await desk.hear("push")
        if push.HasField(subject):  # type: ignore[arg-type]
            return push


def test_every_unary_method_of_chat_is_passed_on_or_not_on_purpose() -> None:
    services = {method.split("/")[1] for method in deskwire_chat.api.AUTHORIZATION}
    unary = {
        f"/{name}/{method.name}"
        for name in services
        if name.startswith("deskwire.chat.v1.") and name not in NOT_PASSED_ON
        for method in Default().FindServiceByName(name).methods
        if not method.client_streaming and not method.server_streaming
    }
    assert unary == METHODS


async def test_what_is_not_called_over_a_connection(start: Start) -> None:
    refused = (
        "/deskwire.chat.v1.ConversationService/WatchConversation",
        "/deskwire.chat.v1.ConversationService/StreamMessages",
        "/deskwire.chat.v1.ConversationService/",
        "/deskwire.chat.v1.TenantService/ListTenants",
        "/deskwire.chat.v1.IntegrationKeyService/ExchangeIntegrationKey",
        "/deskwire.shard.v1.ShardService/Link",
        "/grpc.health.v1.Health/Check",
        "deskwire.chat.v1.AgentService/GetAgent",
        "GetAgent",
        "",
        "x" * 201,
    )
    async with start() as d, wire(d, d.token(Role.AGENT, "alice")) as desk:
        for number, method in enumerate(refused, 1):
            await desk.say(rpc=frame_pb2.Rpc(id=number, method=method))
            result = await desk.result(number)
            assert why(result) == ("INVALID_FIELD", False), method
            assert [each.field for each in result.error.violations] == ["method"], method
        bad = frame_pb2.Rpc(id=99, method=f"/deskwire.chat.v1.{GET_AGENT}")
        bad.timeout.seconds = -1
        await desk.say(rpc=bad)
        assert why(await desk.result(99)) == ("INVALID_FIELD", False)
        await desk.call(0, GET_AGENT, get("alice"))
        assert why(await desk.result(0)) == ("INVALID_FIELD", False)
        await desk.say(rpc_result=frame_pb2.RpcResult(id=1))
        assert await desk.refused() == "UNKNOWN_FRAME"


async def test_visitors_bring_their_token_and_see_what_is_theirs(start: Start) -> None:
    async with start() as d:
        token = d.token(Role.VISITOR, "1")
        async with wire(d, token) as visitor, wire(d, d.token(Role.VISITOR, "2")) as other:
            conversation, others = await talk(d, visitor), await talk(d, other)
            await visitor.call(1, LIST_MESSAGES, messages_of(conversation))
            assert why(await visitor.result(1)) == ("TOKEN_MISSING", False)
            await visitor.call(2, LIST_MESSAGES, messages_of(conversation), token=token)
            assert listed(await visitor.result(2)) == ["hello"]
            await visitor.call(3, LIST_MESSAGES, messages_of(others), token=token)
            assert why(await visitor.result(3))[0] == "CONVERSATION_NOT_FOUND"
            agents = d.token(Role.AGENT, "1")
            await visitor.call(4, LIST_MESSAGES, messages_of(others), token=agents)
            assert why(await visitor.result(4)) == ("ROLE_NOT_ALLOWED", False)
            old = d.token(Role.VISITOR, "1", ttl=-60.0)
            await visitor.call(5, LIST_MESSAGES, messages_of(conversation), token=old)
            assert why(await visitor.result(5)) == ("TOKEN_EXPIRED", False)
            await visitor.call(6, SET_STATUS, available(), token=token)
            assert why(await visitor.result(6)) == ("ROLE_NOT_ALLOWED", False)


async def test_a_new_token_is_what_calls_are_made_with(start: Start) -> None:
    async with start() as d, wire(d, d.token(Role.AGENT, "alice", ttl=60)) as desk:
        await desk.call(1, SET_STATUS, available())
        assert (await desk.result(1)).HasField("response")
        await desk.say(refresh=frame_pb2.Refresh(token=d.token(Role.AGENT, "alice", ttl=600)))
        await desk.hear("refreshed")
        d.let_pass(61)  # the first one is over
        await desk.call(2, GET_AGENT, get("alice"))
        assert (await desk.result(2)).HasField("response")


async def test_only_so_many_are_under_way_and_none_twice(
    start: Start, valkey: str, keys_file: Path
) -> None:
    async with (
        start() as d,
        behind(d, valkey, keys_file) as (slow, way),
        wire(slow, d.token(Role.AGENT, "alice")) as desk,
    ):
        await desk.call(100, SET_STATUS, available())
        await desk.result(100)
        way.hold()
        for number in range(1, 9):
            await desk.call(number, GET_AGENT, get("alice"))
        await desk.call(9, GET_AGENT, get("alice"))
        assert why(await desk.result(9)) == ("OVERLOADED", True)
        await desk.call(1, GET_AGENT, get("alice"))  # is under way
        await desk.say(ping=frame_pb2.Ping(id=7))
        assert (await desk.hear("pong")).id == 7
        way.release()
        results = [await desk.hear("rpc_result") for _ in range(8)]
        assert {each.id for each in results} == set(range(1, 9))
        assert all(each.HasField("response") for each in results)
        # There is room again, and its number may be used again.
        await desk.call(1, GET_AGENT, get("alice"))
        assert (await desk.result(1)).HasField("response")


async def test_a_call_has_a_deadline(start: Start, valkey: str, keys_file: Path) -> None:
    async with (
        start() as d,
        behind(d, valkey, keys_file) as (slow, way),
        wire(slow, d.token(Role.AGENT, "alice")) as desk,
    ):
        await desk.call(1, SET_STATUS, available())
        await desk.result(1)
        way.hold()
        brief = {"nanos": 200_000_000}
        status = available(agent_id="alice")
        await desk.call(2, SET_STATUS, status, timeout=brief)
        assert why(await desk.result(2)) == ("DEADLINE_EXCEEDED", True)
        way.release()
        # It was done all the same; the same request_id says what became of it.
        await desk.call(3, SET_STATUS, status)
        assert (await desk.result(3)).HasField("response")


async def test_chat_that_is_away(start: Start, valkey: str, keys_file: Path) -> None:
    async with (
        start() as d,
        behind(d, valkey, keys_file) as (slow, way),
        wire(slow, d.token(Role.AGENT, "alice")) as desk,
    ):
        await way.vanish()
        await desk.call(1, SET_STATUS, available())
        result = await desk.result(1)
        assert why(result) == ("DEPENDENCY_UNAVAILABLE", True)
        assert result.error.HasField("retry_after")
        assert "127.0.0.1" not in result.error.message
        await way.listen()

        async def works() -> bool:
            await desk.call(2, SET_STATUS, available())
            return (await desk.result(2)).HasField("response")

        await eventually(works, interval=0.2, timeout=20)


async def test_a_result_comes_after_a_break(start: Start, valkey: str, keys_file: Path) -> None:
    async with start() as d, behind(d, valkey, keys_file) as (slow, way), AsyncExitStack() as stack:
        token = d.token(Role.AGENT, "alice")
        async with wire(slow, token) as first:
            await first.call(1, SET_STATUS, available())
            await first.result(1)
            way.hold()
            await first.call(2, GET_AGENT, get("alice"))
            await first.say(ping=frame_pb2.Ping(id=1))
            await first.hear("pong")
            await cut(first)
        second = await stack.enter_async_context(wire(slow))
        assert (await second.resume(token, first)).lossless
        way.release()
        assert (await second.result(2)).HasField("response")
        # Had it come while nobody was there, it would be repeated.
        await second.call(3, GET_AGENT, get("alice"))
        await cut(second)
        third = await stack.enter_async_context(wire(slow))
        await third.greet(
            token,
            resume=frame_pb2.Resume(
                session_id=first.welcome.session_id, last_number=second.number - 1
            ),
        )
        assert (await third.hear("resumed")).lossless
        assert {(await third.hear("rpc_result")).id for _ in range(2)} == {2, 3}


async def test_what_is_large_is_asked_for_again_and_what_is_too_large_in_parts(
    start: Start,
) -> None:
    async with start(max_result_bytes=40_000) as d:
        token = d.token(Role.AGENT, "alice")
        async with wire(d, d.token(Role.VISITOR, "1")) as visitor, wire(d, token) as desk:
            await desk.call(1, SET_STATUS, available())
            await desk.result(1)
            conversation = await talk(d, visitor, "x" * 6_000)
            for _ in range(7):
                await visitor.send(conversation, "x" * 6_000)
                await visitor.hear("send_ack")
            await desk.call(2, LIST_MESSAGES, messages_of(conversation))
            assert why(await desk.result(2)) == ("TOO_LARGE", True)
            number = desk.number
            await desk.call(3, LIST_MESSAGES, messages_of(conversation, page_size=5))
            assert len(listed(await desk.result(3))) == 5
            assert desk.number == number
            await cut(desk)
            async with wire(d) as again:
                # It isn't kept, and doesn't push out what is.
                assert (await again.resume(token, desk)).lossless
                await again.call(3, LIST_MESSAGES, messages_of(conversation, page_size=5))
                assert len(listed(await again.result(3))) == 5


async def test_calls_count_four_times(start: Start) -> None:
    async with (
        start(send_rate=0.1, send_burst=9) as d,
        wire(d, d.token(Role.AGENT, "alice")) as desk,
    ):
        for number in (1, 2):
            await desk.call(number, SET_STATUS, available())
            assert (await desk.result(number)).HasField("response")
        await desk.call(3, SET_STATUS, available())
        result = await desk.result(3)
        assert why(result) == ("RATE_LIMITED", True)
        assert result.error.retry_after.seconds > 20


async def test_a_gateway_that_stops_waits_for_results(
    start: Start, valkey: str, keys_file: Path
) -> None:
    async with start() as d, AsyncExitStack() as stack, behind(d, valkey, keys_file) as (slow, way):
        desk = await stack.enter_async_context(wire(slow, d.token(Role.AGENT, "alice")))
        await desk.call(1, SET_STATUS, available())
        await desk.result(1)
        way.hold()
        await desk.call(2, GET_AGENT, get("alice"))
        await desk.say(ping=frame_pb2.Ping(id=1))
        await desk.hear("pong")
        asyncio.get_running_loop().call_later(0.5, way.release)
        await slow.gateway._drain()
        assert (await desk.result(2)).HasField("response")
        assert (await desk.hear("goodbye")).code == 3000


async def test_who_leaves_ends_their_calls(start: Start, valkey: str, keys_file: Path) -> None:
    async with start() as d, behind(d, valkey, keys_file) as (slow, way):
        async with wire(slow, d.token(Role.AGENT, "alice")) as desk:
            await desk.call(1, SET_STATUS, available())
            await desk.result(1)
            way.hold()
            await desk.call(2, GET_AGENT, get("alice"))
            await desk.say(goodbye=frame_pb2.Goodbye(code=1000))
            await desk.socket.wait_closed()

        def calls() -> int:
            return sum(each.get_name().startswith("call-") for each in asyncio.all_tasks())

        await eventually(lambda: calls() == 0)


async def test_calls_over_grpc(start: Start) -> None:
    async with start() as d, grpc.aio.insecure_channel(f"127.0.0.1:{d.gateway.port}") as channel:
        call: Any = channel.stream_stream(
            "/deskwire.gateway.v1.GatewayService/Connect",
            request_serializer=frame_pb2.Batch.SerializeToString,
            response_deserializer=frame_pb2.Batch.FromString,
        )()
        rpc = frame_pb2.Rpc(id=7, method=f"/deskwire.chat.v1.{GET_AGENT}")
        rpc.request = get("robot").SerializeToString()
        hello = frame_pb2.Hello(token=d.token(Role.BOT, "robot"))
        frames = [frame_pb2.Frame(hello=hello), frame_pb2.Frame(rpc=rpc)]
        await call.write(frame_pb2.Batch(frames=frames))
        while True:
            found = [each for each in (await call.read()).frames if each.HasField("rpc_result")]
            if found:
                break
        assert why(found[0].rpc_result) == ("AGENT_NOT_FOUND", False)
        await call.write(frame_pb2.Batch(frames=[frame_pb2.Frame(goodbye=frame_pb2.Goodbye())]))
        while await call.read() is not grpc.aio.EOF:
            pass


async def test_the_client_calls(start: Start, valkey: str, keys_file: Path) -> None:
    async with start() as d, behind(d, valkey, keys_file) as (slow, way):
        ann = await slow.client(Role.AGENT, "ann")
        method = f"/deskwire.chat.v1.{SET_STATUS}"
        response = agent_service_pb2.SetAgentStatusResponse
        found = await ann.call(method, available(), response)
        assert found.agent.agent_id == "ann"
        with pytest.raises(Refused, match="AGENT_NOT_FOUND"):
            await ann.call(
                f"/deskwire.chat.v1.{GET_AGENT}", get("bob"), agent_service_pb2.GetAgentResponse
            )
        # Done once, although the connection breaks and it is said again.
        way.hold()
        again = asyncio.create_task(ann.call(method, available(), response))
        await asyncio.sleep(0.3)
        ann._connection._socket.transport.underlying_transport.abort()  # type: ignore[union-attr]
        await eventually(lambda: ann.reconnects == 1 and ann.connected)
        way.release()
        assert (await again).agent.version == found.agent.version
        # A visitor's token is brought along.
        visitor = await slow.client(Role.VISITOR, "1")
        conversation = new_id()
        await visitor.send(conversation, "hello")
        seen = await visitor.call(
            f"/deskwire.chat.v1.{LIST_MESSAGES}",
            messages_of(conversation),
            conversation_service_pb2.ListMessagesResponse,
        )
        assert seen.messages[0].content.text == "hello"


async def test_a_call_is_part_of_its_clients_trace(start: Start) -> None:
    trace, unsampled = "0af7651916cd43dd8448eb211c80319c", "1af7651916cd43dd8448eb211c80319c"
    async with receiver() as spans:
        async with (
            start(otlp_endpoint=spans.target) as d,
            wire(d, d.token(Role.AGENT, "alice")) as desk,
        ):
            for number, (of, flags) in enumerate(((trace, "01"), (unsampled, "00")), 1):
                traceparent = f"00-{of}-b7ad6b7169203331-{flags}"
                await desk.call(number, SET_STATUS, available(), traceparent=traceparent)
                assert (await desk.result(number)).HasField("response")
        found = {each.name: each for each in spans.spans if each.trace_id == trace}
        passed_on, served = found["gateway.rpc"], found[f"deskwire.chat.v1.{SET_STATUS}"]
        assert passed_on.parent_id == "b7ad6b7169203331"
        assert served.parent_id == passed_on.span_id
        assert not [each for each in spans.spans if each.trace_id == unsampled]
