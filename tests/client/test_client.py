"""The reference client against a server of the `websockets` library that breaks, forgets and repeats as it is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from deskwire.chat.v1 import agent_service_pb2, conversation_pb2
from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire_client import Client, Closed, Refused
from support import eventually

TALK = "0199a000-0000-7000-8000-000000000001"


class Peer:
    """The server's end of one connection."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket
        self.size = 0
        self._frames: list[frame_pb2.Frame] = []

    async def next(self, kind: str) -> Any:
        """The next frame that isn't a Ping; it has to be of this kind."""
        while True:
            while not self._frames:
                data = await asyncio.wait_for(self.socket.recv(), 10)
                assert isinstance(data, bytes)
                self.size = len(data)
                self._frames = list(frame_pb2.Batch.FromString(data).frames)
            frame = self._frames.pop(0)
            found = frame.WhichOneof("kind")
            if found != "ping":
                assert found == kind, frame
                return getattr(frame, kind)

    async def say(self, *frames: frame_pb2.Frame) -> None:
        await self.socket.send(frame_pb2.Batch(frames=frames).SerializeToString())

    async def greet(self, **limits: Any) -> frame_pb2.Hello:
        """Hello and Welcome."""
        hello: frame_pb2.Hello = await self.next("hello")
        window = limits.pop("window", 64)
        ping_interval = limits.pop("ping_interval", 25)
        welcome = frame_pb2.Welcome(session_id="s", max_unacked_sends=window, **limits)
        welcome.ping_interval.FromMilliseconds(int(ping_interval * 1000))
        await self.say(frame_pb2.Frame(welcome=welcome))
        return hello

    async def ack(self, send: frame_pb2.Send, seq: int) -> None:
        await self.say(
            frame_pb2.Frame(
                send_ack=frame_pb2.SendAck(
                    conversation_id=send.conversation_id,
                    client_msg_id=send.client_msg_id,
                    message_id=f"m-{seq}",
                    seq=seq,
                    epoch=1,
                )
            )
        )


def message(seq: int) -> conversation_pb2.Message:
    return conversation_pb2.Message(
        conversation_id=TALK, seq=seq, content=conversation_pb2.Content(text=f"text {seq}")
    )


def push(seq: int, epoch: int = 1) -> frame_pb2.Frame:
    return frame_pb2.Frame(push=frame_pb2.Push(message=message(seq), epoch=epoch))


def error(send: frame_pb2.Send, *, temporary: bool, reason: int) -> frame_pb2.Frame:
    return frame_pb2.Frame(
        error=frame_pb2.Error(
            reason=reasons.ErrorReason.ValueType(reason),
            message="no",
            temporary=temporary,
            conversation_id=send.conversation_id,
            client_msg_id=send.client_msg_id,
        )
    )


Script = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def server(*scripts: Script) -> AsyncIterator[str]:
    """A server that plays one script per connection; the connection ends with it. All of them must have been played."""
    waiting = list(scripts)
    failures: list[BaseException] = []

    async def handle(socket: ServerConnection) -> None:
        script = waiting.pop(0)
        try:
            await script(Peer(socket))
        except Exception as error:
            failures.append(error)
            raise

    async with serve(handle, "127.0.0.1", 0, subprotocols=["deskwire.v1"]) as running:  # type: ignore[list-item]
        port = next(iter(running.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}/ws"
        assert not failures
        assert not waiting


async def until_closed(peer: Peer) -> None:
    await peer.socket.wait_closed()


async def test_sends_without_an_ack_are_sent_again_in_order() -> None:
    async def breaks(peer: Peer) -> None:
        await peer.greet()
        first = await peer.next("send")
        await peer.ack(first, 1)
        for text in ("two", "three"):
            assert (await peer.next("send")).content.text == text

    async def stays(peer: Peer) -> None:
        await peer.greet()
        for seq, text in enumerate(("two", "three", "four"), 2):
            send = await peer.next("send")
            assert send.content.text == text
            again.append(send.client_msg_id)
            await peer.ack(send, seq)
        await until_closed(peer)

    again: list[str] = []
    async with server(breaks, stays) as url, Client(url, "token") as client:
        sent = [client.post(TALK, text, client_msg_id=text) for text in ("one", "two", "three")]
        await eventually(lambda: client.reconnects == 1)
        sent.append(client.post(TALK, "four", client_msg_id="four"))
        assert [(await each).seq for each in sent] == [1, 2, 3, 4]
        assert again == ["two", "three", "four"]


async def test_a_sync_that_is_refused_for_now_is_asked_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        head = frame_pb2.Head(conversation_id=TALK, epoch=1, seq=1)
        await peer.say(frame_pb2.Frame(head=head))
        await peer.next("sync")
        refusal = frame_pb2.Error(conversation_id=TALK, message="later", temporary=True)
        refusal.retry_after.FromMilliseconds(10)
        await peer.say(frame_pb2.Frame(error=refusal))
        # Nothing else tells the client that it is behind.
        sync = await peer.next("sync")
        assert sync.after_seq == 0
        synced = frame_pb2.Synced(conversation_id=TALK, epoch=1, head_seq=1, messages=[message(1)])
        await peer.say(frame_pb2.Frame(synced=synced))
        await until_closed(peer)

    async with server(script) as url, Client(url, "token") as client:
        await eventually(lambda: client.position(TALK) == 1)


async def test_a_gap_is_filled_before_anything_after_it_is_handed_out() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        await peer.say(push(1), push(4), push(4))
        sync = await peer.next("sync")
        assert (sync.conversation_id, sync.after_seq) == (TALK, 1)
        await peer.say(push(5))
        synced = frame_pb2.Synced(conversation_id=TALK, epoch=1, head_seq=5)
        synced.messages.extend([message(2), message(3)])
        await peer.say(frame_pb2.Frame(synced=synced), push(2), push(6))
        await until_closed(peer)

    seen: list[int] = []
    async with (
        server(script) as url,
        Client(url, "token", on_push=lambda each: seen.append(each.message.seq)) as client,
    ):
        await eventually(lambda: len(seen) >= 6)
        assert seen == [1, 2, 3, 4, 5, 6]
        assert client.position(TALK) == 6


async def test_a_head_after_a_break_brings_what_was_missed() -> None:
    async def breaks(peer: Peer) -> None:
        await peer.greet()
        await peer.say(push(1), push(2))
        await seen_by_client.wait()

    async def stays(peer: Peer) -> None:
        await peer.greet()
        await peer.say(frame_pb2.Frame(head=frame_pb2.Head(conversation_id=TALK, epoch=1, seq=4)))
        assert (await peer.next("sync")).after_seq == 2
        # Less than was asked for: the client asks on.
        for seq in (3, 4):
            synced = frame_pb2.Synced(conversation_id=TALK, epoch=1, head_seq=4)
            synced.messages.append(message(seq))
            await peer.say(frame_pb2.Frame(synced=synced))
            if seq == 3:
                assert (await peer.next("sync")).after_seq == 3
        await until_closed(peer)

    seen: list[int] = []
    seen_by_client = asyncio.Event()

    def on_push(each: frame_pb2.Push) -> None:
        seen.append(each.message.seq)
        if len(seen) == 2:
            seen_by_client.set()

    async with server(breaks, stays) as url, Client(url, "token", on_push=on_push):
        await eventually(lambda: len(seen) >= 4)
    assert seen == [1, 2, 3, 4]


async def test_a_new_epoch_begins_anew() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        await peer.say(push(1), push(2), push(1, epoch=2))
        await until_closed(peer)

    seen: list[tuple[int, int]] = []
    async with (
        server(script) as url,
        Client(url, "token", on_push=lambda each: seen.append((each.epoch, each.message.seq))),
    ):
        await eventually(lambda: len(seen) >= 3)
    assert seen == [(1, 1), (1, 2), (2, 1)]


async def test_what_is_refused_for_now_goes_again_and_keeps_its_place() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        first, second = await peer.next("send"), await peer.next("send")
        for send in (first, second):
            await peer.say(error(send, temporary=True, reason=reasons.ERROR_REASON_OVERLOADED))
        for seq, text in enumerate(("one", "two"), 1):
            send = await peer.next("send")
            assert send.content.text == text
            await peer.ack(send, seq)
        await until_closed(peer)

    async with server(script) as url, Client(url, "token") as client:
        sent = [client.post(TALK, text) for text in ("one", "two")]
        assert [(await each).seq for each in sent] == [1, 2]


async def test_what_is_refused_for_good_is_told() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        send = await peer.next("send")
        frame = error(send, temporary=False, reason=reasons.ERROR_REASON_ATTACHMENT_NOT_READY)
        frame.error.metadata["state"] = "PENDING"
        frame.error.violations.add(field="content", description="too early")
        await peer.say(frame)
        await peer.ack(await peer.next("send"), 1)
        await until_closed(peer)

    async with server(script) as url, Client(url, "token") as client:
        with pytest.raises(Refused, match="ATTACHMENT_NOT_READY: no") as raised:
            await client.send(TALK, "one")
        assert raised.value.metadata == {"state": "PENDING"}
        assert raised.value.violations == (("content", "too early"),)
        assert (await client.send(TALK, "two")).seq == 1


async def test_no_more_is_under_way_than_the_server_allows() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet(window=2)
        first, second = await peer.next("send"), await peer.next("send")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(peer.socket.recv(), 0.2)
        await peer.ack(first, 1)
        await peer.ack(await peer.next("send"), 3)
        await peer.ack(second, 2)
        await until_closed(peer)

    async with server(script) as url, Client(url, "token") as client:
        sent = [client.post(TALK, text) for text in ("one", "two", "three")]
        assert sorted([(await each).seq for each in sent]) == [1, 2, 3]


async def test_no_message_is_larger_than_the_server_takes() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet(max_message_bytes=2_000)
        for seq in range(1, 6):
            send = await peer.next("send")
            await peer.ack(send, seq)
            assert peer.size <= 2_000
        await until_closed(peer)

    async with server(script) as url, Client(url, "token") as client:
        sent = [client.post(TALK, "x" * 700) for _ in range(5)]
        large = client.post(TALK, "x" * 2_000)
        assert [(await each).seq for each in sent] == [1, 2, 3, 4, 5]
        with pytest.raises(Refused, match="TOO_LARGE"):
            await large


async def test_a_goodbye_for_good_ends_the_client() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        await peer.next("send")
        goodbye = frame_pb2.Goodbye(
            code=3503, reason=reasons.ERROR_REASON_TENANT_DISABLED, message="gone"
        )
        await peer.say(frame_pb2.Frame(goodbye=goodbye))
        await peer.socket.close(3503)

    async with server(script) as url, Client(url, "token") as client:
        with pytest.raises(Refused, match="TENANT_DISABLED: gone"):
            await client.send(TALK, "one")
        with pytest.raises(Closed):
            await client.send(TALK, "two")
        assert client.reconnects == 0


async def test_a_server_that_says_nothing_any_more_is_left() -> None:
    async def dead(peer: Peer) -> None:
        await peer.greet(ping_interval=0.2)
        said.append(await peer.next("send"))
        with contextlib.suppress(ConnectionClosed):  # its Pings come, and no Pong is said
            while True:
                await peer.socket.recv()

    async def alive(peer: Peer) -> None:
        await peer.greet()
        send = await peer.next("send")
        assert send == said[0]
        await peer.ack(send, 1)
        await until_closed(peer)

    said: list[frame_pb2.Send] = []
    async with server(dead, alive) as url, Client(url, "token") as client:
        assert (await asyncio.wait_for(client.send(TALK, "one"), 10)).seq == 1
        assert client.reconnects == 1


async def test_every_connect_asks_for_a_token() -> None:
    async def once(peer: Peer) -> None:
        hellos.append((await peer.greet()).token)
        goodbye = frame_pb2.Goodbye(code=3001, reconnect=True)
        await peer.say(frame_pb2.Frame(goodbye=goodbye))

    async def twice(peer: Peer) -> None:
        hellos.append((await peer.greet()).token)
        await until_closed(peer)

    async def token() -> str:
        return f"token {len(hellos)}"

    hellos: list[str] = []
    async with server(once, twice) as url, Client(url, token) as client:
        await eventually(lambda: len(hellos) == 2 and client.connected)
    assert hellos == ["token 0", "token 1"]


async def test_a_token_that_has_ended_by_the_clients_clock_is_renewed_once() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet(token_expire_time=Timestamp(seconds=1))
        assert (await peer.next("refresh")).token == "another"
        renewed.set()
        await peer.ack(await peer.next("send"), 1)
        await until_closed(peer)

    renewed = asyncio.Event()
    async with server(script) as url, Client(url, lambda: "another") as client:
        await renewed.wait()
        await asyncio.wait_for(client.send(TALK, "one"), 10)


async def test_nobody_listens() -> None:
    client = Client("ws://127.0.0.1:1/ws", "token")
    with pytest.raises(OSError, match="1"):
        await client.connect()
    with pytest.raises(Closed):
        client.post(TALK, "one")


async def test_closing_leaves_no_send_waiting() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet()
        await peer.next("send")
        await until_closed(peer)

    async with server(script) as url:
        async with Client(url, "token") as client:
            sent = client.post(TALK, "one")
            await asyncio.sleep(0)
        with pytest.raises(Closed):
            await sent
        assert [each async for each in client.updates()] == []


GET_AGENT = "/deskwire.chat.v1.AgentService/GetAgent"


def get(agent: str) -> agent_service_pb2.GetAgentRequest:
    return agent_service_pb2.GetAgentRequest(agent_id=agent)


def agent(rpc: frame_pb2.Rpc) -> frame_pb2.Frame:
    """The result of a GetAgent: the agent it asks for."""
    found = agent_service_pb2.GetAgentResponse()
    found.agent.agent_id = agent_service_pb2.GetAgentRequest.FromString(rpc.request).agent_id
    result = frame_pb2.RpcResult(id=rpc.id, response=found.SerializeToString())
    return frame_pb2.Frame(rpc_result=result)


def failure(rpc: frame_pb2.Rpc, **error: Any) -> frame_pb2.Frame:
    result = frame_pb2.RpcResult(id=rpc.id, error=frame_pb2.Error(message="no", **error))
    return frame_pb2.Frame(rpc_result=result)


async def ask(client: Client, name: str, **more: Any) -> str:
    found = await client.call(GET_AGENT, get(name), agent_service_pb2.GetAgentResponse, **more)
    return found.agent.agent_id


async def test_calls_are_answered_in_any_order_and_no_more_than_fit() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet(max_calls=2)
        first, second = await peer.next("rpc"), await peer.next("rpc")
        assert (first.method, first.timeout.seconds, first.token) == (GET_AGENT, 10, "")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(peer.socket.recv(), 0.2)
        await peer.say(agent(second), agent(second))
        third = await peer.next("rpc")
        await peer.say(agent(third), agent(first))
        await until_closed(peer)

    async with server(script) as url, Client(url, "token") as client:
        names = ["ann", "bob", "cem"]
        assert await asyncio.gather(*(ask(client, name) for name in names)) == names


async def test_a_call_is_made_again_after_a_break() -> None:
    async def breaks(peer: Peer) -> None:
        await peer.greet(max_calls=8)
        first, second = await peer.next("rpc"), await peer.next("rpc")
        said.extend([first, second])
        await peer.say(agent(second))

    async def stays(peer: Peer) -> None:
        await peer.greet(max_calls=8)
        again = await peer.next("rpc")
        assert again == said[0]
        await peer.say(agent(again))
        await until_closed(peer)

    said: list[frame_pb2.Rpc] = []
    async with server(breaks, stays) as url, Client(url, "token") as client:
        assert await asyncio.gather(ask(client, "ann"), ask(client, "bob")) == ["ann", "bob"]
        assert client.reconnects == 1


async def test_a_call_that_fails_says_why() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet(max_calls=8)
        refused = {"reason": reasons.ERROR_REASON_VERSION_MISMATCH}
        metadata = {"current_version": "7"}
        await peer.say(failure(await peer.next("rpc"), metadata=metadata, **refused))
        violations = [frame_pb2.FieldViolation(field="agent_id", description="too long")]
        refused = {"reason": reasons.ERROR_REASON_INVALID_FIELD}
        await peer.say(failure(await peer.next("rpc"), violations=violations, **refused))
        rpc = await peer.next("rpc")
        await peer.say(failure(rpc, reason=999, temporary=True, retry_after={"seconds": 2}))
        await peer.next("rpc")  # and no answer
        await peer.say(agent(await peer.next("rpc")))
        await until_closed(peer)

    async with server(script) as url, Client(url, "token") as client:
        with pytest.raises(Refused, match="VERSION_MISMATCH: no") as raised:
            await ask(client, "ann")
        assert (raised.value.metadata, raised.value.temporary) == ({"current_version": "7"}, False)
        with pytest.raises(Refused, match="INVALID_FIELD: no") as raised:
            await ask(client, "ann")
        assert raised.value.violations == (("agent_id", "too long"),)
        with pytest.raises(Refused, match="999: no") as raised:
            await ask(client, "ann")
        assert (raised.value.temporary, raised.value.retry_after) == (True, 2.0)
        with pytest.raises(TimeoutError):
            await ask(client, "ann", timeout=0.2)
        with pytest.raises(Refused, match="TOO_LARGE"):
            await ask(client, "x" * 40_000)
        assert await ask(client, "bob") == "bob"
    with pytest.raises(Closed):
        await ask(client, "ann")


async def test_a_token_is_brought_where_the_server_keeps_none() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet(max_calls=8)
        rpc = await peer.next("rpc")
        assert not rpc.token
        await peer.say(failure(rpc, reason=reasons.ERROR_REASON_TOKEN_MISSING))
        for _ in range(2):
            rpc = await peer.next("rpc")
            assert rpc.token == "token"
            await peer.say(agent(rpc))
        await peer.say(failure(await peer.next("rpc"), reason=reasons.ERROR_REASON_TOKEN_MISSING))
        await until_closed(peer)

    async with server(script) as url, Client(url, "token") as client:
        assert [await ask(client, name) for name in ("ann", "bob")] == ["ann", "bob"]
        with pytest.raises(Refused, match="TOKEN_MISSING"):
            await ask(client, "cem")


async def test_closing_leaves_no_call_waiting() -> None:
    async def script(peer: Peer) -> None:
        await peer.greet(max_calls=8)
        await peer.next("rpc")
        await until_closed(peer)

    async with server(script) as url:
        async with Client(url, "token") as client:
            asked = asyncio.create_task(ask(client, "ann"))
            await asyncio.sleep(0.1)
        with pytest.raises(Closed):
            await asked
