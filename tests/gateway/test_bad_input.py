"""What the gateway does with what it shouldn't get, seen by the `websockets` library speaking raw protobuf."""

from __future__ import annotations

import asyncio
import uuid
import zlib
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from deskwire.gateway.v1 import frame_pb2
from deskwire_common.auth import KeySet, Role, TokenSigner
from support.suite import Desk, desk, new_id
from support.wire import reason, wire


@pytest.fixture
async def d(
    tmp_path: Path, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> AsyncIterator[Desk]:
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    async with desk(url, kafka, valkey, keys_file, signer, hello_timeout=1.0) as found:
        yield found


async def test_before_hello(d: Desk) -> None:
    async with wire(d) as early:
        # The library offers compression, and it isn't taken: a small bomb would unpack to gigabytes.
        assert early.socket.protocol.extensions == []
        await early.send(new_id(), "too early")
        assert await early.refused() == "HELLO_REQUIRED"
        assert (await early.ended())[0] == "HELLO_REQUIRED"
    async with wire(d) as silent:
        name, code = await silent.ended()
        assert name == "HELLO_REQUIRED"
        assert code >= 3000


async def test_tokens(d: Desk) -> None:
    stranger = TokenSigner(KeySet.generate())
    tokens = {
        "not-a-token": "TOKEN_INVALID",
        stranger.mint(tenant=d.tenant, role=Role.VISITOR, subject="v"): "TOKEN_INVALID",
        d.token(Role.OPERATOR, "o"): "ROLE_NOT_ALLOWED",
        d.token(Role.INTEGRATION, "i", system="crm:main"): "ROLE_NOT_ALLOWED",
        "": "INVALID_FIELD",
    }
    for token, expected in tokens.items():
        async with wire(d) as w:
            await w.say(hello=frame_pb2.Hello(token=token))
            assert await w.refused() == expected
            name, code = await w.ended()
            assert (name, code >= 3500) == (expected, True)
    async with wire(d, d.token(Role.VISITOR, "v", ttl=60)) as w:
        d.let_pass(61)
        assert (await w.ended())[0] == "TOKEN_EXPIRED"


async def test_the_connection_survives_bad_frames(d: Desk) -> None:
    async with wire(d, d.token(Role.VISITOR, "v")) as w:
        await w.raw(b"\xff\xff\xff not a batch")
        assert await w.refused() == "MALFORMED_FRAME"
        await w.works()
        # Field 99 is of a later version; Welcome is not a client's to say.
        await w.raw(b"\x0a\x03\x9a\x06\x00")
        assert await w.refused() == "UNKNOWN_FRAME"
        await w.say(welcome=frame_pb2.Welcome(session_id="me"))
        assert await w.refused() == "UNKNOWN_FRAME"
        await w.say(hello=frame_pb2.Hello(token="again"))
        assert await w.refused() in {"UNKNOWN_FRAME", "INVALID_STATE"}
        await w.send(new_id(), "x" * 40_000)
        assert await w.refused() == "TOO_LARGE"
        frames = [frame_pb2.Frame(ping=frame_pb2.Ping(id=1))] * 257
        await w.raw(frame_pb2.Batch(frames=frames).SerializeToString())
        assert await w.refused() == "TOO_LARGE"
        await w.works()


async def test_bad_sends(d: Desk) -> None:
    bad = {
        "conversation_id": ("no-uuid", "hello", "1"),
        "no text": (new_id(), "", "1"),
        "long text": (new_id(), "x" * 8_001, "1"),
        "client_msg_id": (new_id(), "hello", "y" * 65),
        "client_msg_id ends": (new_id(), "hello", "1 "),
    }
    async with wire(d, d.token(Role.VISITOR, "v")) as w:
        for what, (conversation_id, text, client_msg_id) in bad.items():
            await w.send(conversation_id, text, client_msg_id)
            error = await w.hear("error")
            assert (reason(error.reason), error.temporary) == ("INVALID_FIELD", False), what
            assert error.client_msg_id == client_msg_id
        await w.works()


async def test_the_same_id_with_another_body(d: Desk) -> None:
    conversation = str(uuid.uuid4())
    async with wire(d, d.token(Role.VISITOR, "v")) as w:
        for _ in range(2):
            await w.send(conversation, "one", "1")
            assert (await w.hear("send_ack")).seq == 1
        await w.send(conversation, "two", "1")
        error = await w.hear("error")
        assert (reason(error.reason), error.temporary) == ("CLIENT_MSG_ID_REUSED", False)
        await w.say(sync=frame_pb2.Sync(conversation_id=conversation))
        synced = await w.hear("synced")
        assert [each.content.text for each in synced.messages] == ["one"]


async def test_what_belongs_to_others(d: Desk) -> None:
    conversation = str(uuid.uuid4())
    async with wire(d, d.token(Role.VISITOR, "owner")) as owner:
        await owner.send(conversation, "mine")
        await owner.hear("send_ack")
        strangers = (
            d.token(Role.VISITOR, "other"),
            d.token(Role.VISITOR, "owner", tenant="elsewhere"),
            d.token(Role.AGENT, "bob", tenant="elsewhere"),
        )
        for token in strangers:
            async with wire(d, token) as w:
                await w.send(conversation, "let me in")
                assert await w.refused() in {"NOT_A_PARTICIPANT", "CONVERSATION_NOT_FOUND"}
                await w.say(sync=frame_pb2.Sync(conversation_id=conversation))
                assert await w.refused() in {"NOT_A_PARTICIPANT", "CONVERSATION_NOT_FOUND"}
        await owner.say(sync=frame_pb2.Sync(conversation_id=conversation))
        synced = await owner.hear("synced")
        assert [each.content.text for each in synced.messages] == ["mine"]
        await owner.say(sync=frame_pb2.Sync(conversation_id=new_id()))
        assert await owner.refused() == "CONVERSATION_NOT_FOUND"


async def test_faults_without_end_end_the_connection(d: Desk) -> None:
    async with wire(d, d.token(Role.VISITOR, "v")) as w:
        for _ in range(20):
            await w.raw(b"\xff")
        assert (await w.ended())[1] >= 3500


async def test_other_protocols(d: Desk) -> None:
    with pytest.raises(InvalidStatus):
        async with connect(d.url.replace("/ws", "/nowhere"), subprotocols=["deskwire.v1"]):  # type: ignore[list-item]
            pass
    async with wire(d, d.token(Role.VISITOR, "v")) as w:
        await w.raw("text")
        assert await w.refused() == "MALFORMED_FRAME"
        ping = frame_pb2.Batch(frames=[frame_pb2.Frame(ping=frame_pb2.Ping(id=7))])
        data = ping.SerializeToString()
        await w.socket.send([data[:2], data[2:]])  # one message in two fragments
        assert (await w.hear("pong")).id == 7
        await w.works()


async def test_what_is_no_websocket_of_ours(d: Desk) -> None:
    # Another subprotocol, and none.
    for offered in (["deskwire.v2", "graphql-ws"], None):
        with pytest.raises(InvalidStatus) as refused:
            async with connect(d.url, subprotocols=offered):  # type: ignore[arg-type]
                pass
        assert refused.value.response.status_code == 400
        assert b"deskwire.v1" in refused.value.response.body
    # One of several is ours: that is the one that is spoken.
    both = ["soap", "deskwire.v1"]
    async with connect(d.url, subprotocols=both) as socket:  # type: ignore[arg-type]
        assert socket.subprotocol == "deskwire.v1"
    # Plain HTTP.
    port = d.gateway.extra_ports["ws"]
    for request in ("GET /ws", "GET /", "POST /ws", "PRI *"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{request} HTTP/1.1\r\nHost: desk\r\nContent-Length: 0\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer == b"" or 400 <= int(answer.split()[1]) < 500, request
        writer.close()
    async with wire(d, d.token(Role.VISITOR, "v")) as w:
        await w.works()


async def test_a_compression_bomb_is_not_unpacked(d: Desk) -> None:
    """Ten megabytes in ten kilobytes, over both carriers."""
    bomb = frame_pb2.Batch()
    bomb.frames.add().send.content.text = "0" * 10_000_000
    compress = zlib.compressobj(wbits=-15)
    deflated = compress.compress(bomb.SerializeToString()) + compress.flush()
    async with wire(d, d.token(Role.VISITOR, "w")) as w:
        # FIN, RSV1 as permessage-deflate has it (RFC 7692, 6), binary; 16 bits of length, a mask of zeros.
        header = b"\xc2\xfe" + len(deflated).to_bytes(2, "big") + bytes(4)
        w.socket.transport.write(header + deflated)
        assert await w.refused() == "MALFORMED_FRAME"
        await w.works()
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{d.gateway.port}", options=[("grpc.max_send_message_length", -1)]
    ) as channel:
        call: Any = channel.stream_stream(
            "/deskwire.gateway.v1.GatewayService/Connect",
            request_serializer=frame_pb2.Batch.SerializeToString,
        )(compression=grpc.Compression.Gzip)
        with suppress(grpc.aio.AioRpcError):
            await call.write(bomb)
        # gRPC resets the stream behind its status; on a busy machine the client may read the reset first.
        assert await call.code() in {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL}
    async with wire(d, d.token(Role.VISITOR, "v")) as w:
        await w.works()


async def test_a_huge_message_ends_one_connection_only(d: Desk) -> None:
    async with wire(d, d.token(Role.VISITOR, "v")) as calm:
        async with wire(d, d.token(Role.VISITOR, "w")) as w:
            with pytest.raises(ConnectionClosed) as closed:
                await w.raw(b"\0" * 2_000_000)
                while True:
                    await w.socket.recv()
            # Larger than the server reads on: it may not see the close frame.
            assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
        await calm.works()


async def test_a_reload_finds_the_same_conversation(d: Desk) -> None:
    conversation = str(uuid.uuid4())
    async with wire(d, d.token(Role.VISITOR, "v")) as w:
        await w.send(conversation, "before")
        await w.hear("send_ack")
    async with wire(d, d.token(Role.VISITOR, "v")) as w:
        head = await w.hear("head")
        assert (head.conversation_id, head.seq) == (conversation, 1)


async def test_one_bad_frame_does_not_take_the_others_with_it(d: Desk) -> None:
    send = frame_pb2.Send(conversation_id=new_id(), client_msg_id="m")
    send.content.text = "hello"
    frames = [
        frame_pb2.Frame(welcome=frame_pb2.Welcome()),
        frame_pb2.Frame(read=frame_pb2.Read(conversation_id="x", seq=1)),
        frame_pb2.Frame(send=send),
    ]
    async with wire(d, d.token(Role.VISITOR, "1")) as visitor:
        await visitor.raw(frame_pb2.Batch(frames=frames).SerializeToString())
        assert [await visitor.refused() for _ in range(2)] == ["UNKNOWN_FRAME", "INVALID_FIELD"]
        assert (await visitor.hear("send_ack")).client_msg_id == "m"
