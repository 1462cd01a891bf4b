"""8,000 characters fit in every script, by every carrier; what is larger is refused by its name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from deskwire.chat.v1 import conversation_service_pb2, conversation_service_pb2_grpc
from deskwire.gateway.v1 import frame_pb2, gateway_service_pb2_grpc
from deskwire_common.auth import Role
from deskwire_gateway.protocol import MAX_FAULTS
from deskwire_wire.limits import MAX_MESSAGE_BYTES
from support.suite import Desk, Start, new_id
from support.wire import reason, wire

LONGEST = [character * length for character in "中😀" for length in (5_500, 8_000)]
OVER = ["中" * 20_000, "x" * 40_000, "😀" * 20_000]


@pytest.fixture
async def d(start: Start) -> AsyncIterator[Desk]:
    async with start() as found:
        yield found


def send_of(text: str, conversation_id: str = "") -> frame_pb2.Send:
    send = frame_pb2.Send(conversation_id=conversation_id or new_id(), client_msg_id=new_id())
    send.content.text = text
    return send


def batch_of(*frames: frame_pb2.Frame) -> frame_pb2.Batch:
    return frame_pb2.Batch(frames=frames)


class Stream:
    """A Connect, after its Welcome."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._frames: list[frame_pb2.Frame] = []

    async def say(self, **kind: Any) -> None:
        await self._call.write(batch_of(frame_pb2.Frame(**kind)))

    async def hear(self, *kinds: str) -> Any:
        while True:
            while self._frames:
                frame = self._frames.pop(0)
                if (kind := frame.WhichOneof("kind")) in kinds:
                    return getattr(frame, str(kind))
            self._frames = list((await asyncio.wait_for(self._call.read(), 30)).frames)


async def test_by_websocket(d: Desk) -> None:
    async with wire(d, d.token(Role.VISITOR, "v")) as w:
        assert w.welcome.max_message_bytes == MAX_MESSAGE_BYTES == 36_864
        conversation = new_id()
        for seq, text in enumerate(LONGEST, 1):
            await w.say(send=send_of(text, conversation))
            assert (await w.hear_one_of("send_ack", "error")).seq == seq
        await w.say(sync=frame_pb2.Sync(conversation_id=conversation))
        synced = await w.hear("synced")
        assert [each.content.text for each in synced.messages] == LONGEST


async def test_by_the_reference_client(d: Desk) -> None:
    client = await d.client(Role.VISITOR, "v")
    conversation = new_id()
    assert [(await client.send(conversation, text)).seq for text in LONGEST] == [1, 2, 3, 4]


async def test_by_connect(d: Desk) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{d.gateway.port}") as channel:
        call: Any = gateway_service_pb2_grpc.GatewayServiceStub(channel).Connect()
        stream, conversation = Stream(call), new_id()
        await stream.say(hello=frame_pb2.Hello(token=d.token(Role.VISITOR, "v")))
        await stream.hear("welcome")
        for seq, text in enumerate(LONGEST, 1):
            await stream.say(send=send_of(text, conversation))
            assert (await stream.hear("send_ack", "error")).seq == seq
        for text in OVER:
            send = send_of(text, conversation)
            await stream.say(send=send)
            assert_refused(await stream.hear("send_ack", "error"), send)
        call.cancel()


async def test_by_grpc(d: Desk) -> None:
    chat: Any = conversation_service_pb2_grpc.ConversationServiceStub(d.channel(Role.VISITOR, "v"))
    conversation = new_id()
    for seq, text in enumerate(LONGEST, 1):
        request = conversation_service_pb2.SendMessageRequest(
            conversation_id=conversation, client_msg_id=new_id()
        )
        request.content.text = text
        assert (await chat.SendMessage(request)).message.seq == seq


async def test_by_an_rpc_frame(d: Desk) -> None:
    conversation = new_id()
    token = d.token(Role.VISITOR, "v")
    async with wire(d, token) as w:
        await w.send(conversation, "hello")
        await w.hear("send_ack")
        for number, text in enumerate([*LONGEST, *OVER], 1):
            request = conversation_service_pb2.SendMessageRequest(
                conversation_id=conversation, client_msg_id=new_id()
            )
            request.content.text = text
            await w.call(number, "ConversationService/SendMessage", request, token=token)
            result = await w.result(number)
            if text in LONGEST:
                assert result.WhichOneof("outcome") == "response", result
            else:
                assert (reason(result.error.reason), result.error.temporary) == ("TOO_LARGE", False)


def assert_refused(error: frame_pb2.Error, send: frame_pb2.Send) -> None:
    assert isinstance(error, frame_pb2.Error)
    assert (reason(error.reason), error.temporary) == ("TOO_LARGE", False)
    assert (error.client_msg_id, error.conversation_id) == (
        send.client_msg_id,
        send.conversation_id,
    )


async def test_what_is_over_the_limit_is_named_and_no_fault(d: Desk) -> None:
    async with wire(d, d.token(Role.VISITOR, "v")) as w:
        for text in OVER * MAX_FAULTS:
            send = send_of(text)
            await w.say(send=send)
            assert_refused(await w.hear_one_of("send_ack", "error"), send)
        # The same in fragments.
        send = send_of(OVER[0])
        data = batch_of(frame_pb2.Frame(send=send)).SerializeToString()
        await w.socket.send([data[:30_000], data[30_000:50_000], data[50_000:]])
        assert_refused(await w.hear_one_of("send_ack", "error"), send)
        await w.works()


async def test_all_sends_of_a_batch_over_the_limit_are_named(d: Desk) -> None:
    sends = [send_of("x" * 7_000) for _ in range(6)]
    async with wire(d, d.token(Role.VISITOR, "v")) as w:
        batch = batch_of(*(frame_pb2.Frame(send=each) for each in sends))
        await w.raw(batch.SerializeToString())
        for each in sends:
            assert_refused(await w.hear_one_of("send_ack", "error"), each)
        # None of them was taken.
        await w.say(send=sends[0])
        assert not (await w.hear("send_ack")).duplicate


async def test_what_can_not_be_read_is_refused_as_a_whole_and_a_fault(d: Desk) -> None:
    unreadable = [
        b"\xff" * 50_000,
        # More frames than are named.
        batch_of(
            *[frame_pb2.Frame(send=send_of("x" * 50)) for _ in range(300)]
        ).SerializeToString(),
        # Nobody to name.
        batch_of(frame_pb2.Frame(hello=frame_pb2.Hello(token="x" * 50_000))).SerializeToString(),
    ]
    async with wire(d, d.token(Role.VISITOR, "v")) as w:
        for data in unreadable:
            assert len(data) > MAX_MESSAGE_BYTES
            await w.raw(data)
            error = await w.hear("error")
            assert (reason(error.reason), error.client_msg_id) == ("TOO_LARGE", "")
        # In fragments, and larger than is kept.
        await w.socket.send([b"\xff" * 60_000] * 2)
        assert await w.refused() == "TOO_LARGE"
        await w.works()
        for _ in range(MAX_FAULTS - len(unreadable) - 1):
            await w.raw(unreadable[0])
        assert (await w.ended())[1] >= 3500
    async with wire(d) as early:
        await early.say(send=send_of(OVER[0]))
        error = await early.hear("error")
        assert (reason(error.reason), error.client_msg_id) == ("TOO_LARGE", "")
        assert (await early.ended())[0] == "TOO_LARGE"
