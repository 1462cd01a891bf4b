"""What a call may cost its server: before anybody knows who calls, and per method after that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from deskwire.chat.v1 import conversation_service_pb2 as pb
from deskwire.chat.v1 import conversation_service_pb2_grpc
from deskwire_common.auth import Admission, KeySet, Role, TokenSigner, TokenVerifier
from deskwire_common.errors import from_rpc_error
from deskwire_common.rpc import (
    REQUEST_BYTES,
    Access,
    ServerLimits,
    methods_of,
    start_server,
    stream_metadata,
)
from deskwire_common.validation import Validator
from support import eventually

SERVICE = "deskwire.chat.v1.ConversationService"
STREAM = f"/{SERVICE}/StreamMessages"
KEYS = KeySet.generate()
MIB = 1024 * 1024
Send = Callable[[bytes], Any]


class Answering(conversation_service_pb2_grpc.ConversationServiceServicer):
    """Answers everything; the watch waits."""

    async def GetConversation(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        return pb.GetConversationResponse()

    async def StreamMessages(self, requests: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        async for _ in requests:
            yield pb.StreamMessagesResponse()

    async def WatchConversation(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        yield pb.WatchConversationResponse()
        await asyncio.Event().wait()


class Served:
    """A server, a channel to it, and raw calls: bytes in, bytes out."""

    def __init__(self, channel: grpc.aio.Channel, port: int, keys: KeySet) -> None:
        self.channel = channel
        self.port = port
        token = TokenSigner(keys).mint(tenant="acme", role=Role.AGENT, subject="ann")
        self.metadata = stream_metadata(token)

    def get(self, data: bytes, **options: Any) -> Any:
        call = self.channel.unary_unary(f"/{SERVICE}/GetConversation")
        return call(data, **({"metadata": self.metadata} | options))

    def watch(self, data: bytes) -> Any:
        return self.channel.unary_stream(f"/{SERVICE}/WatchConversation")(
            data, metadata=self.metadata
        )

    def stream(self, data: bytes) -> Any:
        return self.channel.stream_stream(STREAM)(iter([data]), metadata=self.metadata)


@asynccontextmanager
async def serving(keys: KeySet = KEYS, **options: Any) -> AsyncIterator[Served]:
    server = await start_server(
        listen="127.0.0.1:0",
        registrars=[
            lambda server: conversation_service_pb2_grpc.add_ConversationServiceServicer_to_server(
                Answering(), server
            )
        ],
        services=[SERVICE],
        authorization=dict.fromkeys(methods_of([SERVICE]), frozenset(Role)),
        verifier=TokenVerifier(keys),
        validator=Validator(),
        **options,
    )
    async with channel_to(server.port) as channel:
        try:
            yield Served(channel, server.port, keys)
        finally:
            await server.stop(0)


def channel_to(port: int) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(
        f"127.0.0.1:{port}", options=[("grpc.max_send_message_length", -1)]
    )


def talk() -> bytes:
    return pb.GetConversationRequest(
        conversation_id="018f0000-0000-7000-8000-000000000001"
    ).SerializeToString()


def padded(message: bytes, size: int) -> bytes:
    """The message with a field that nobody knows, `size` bytes altogether."""
    rest = size - len(message) - 5
    length = bytes([rest & 0x7F | 0x80, rest >> 7 & 0x7F | 0x80, rest >> 14])
    return message + b"\xfa\x01" + length + bytes(rest)


async def refused(call: Any) -> tuple[str, Any]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if isinstance(call, grpc.aio.UnaryUnaryCall):
            await call
        else:
            while await call.read() is not grpc.aio.EOF:
                pass
    error = from_rpc_error(caught.value)
    return error.reason_name, caught.value


@pytest.mark.parametrize("kind", ["get", "watch", "stream"])
async def test_a_request_over_its_methods_limit_is_refused_by_name(kind: str) -> None:
    async with serving() as served:
        reason, error = await refused(getattr(served, kind)(bytes(REQUEST_BYTES + 1)))
        assert (reason, error.code()) == ("TOO_LARGE", grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert str(REQUEST_BYTES) in error.details()
        assert from_rpc_error(error).metadata["limit_bytes"] == str(REQUEST_BYTES)
        assert await served.get(padded(talk(), REQUEST_BYTES)) == b""


async def test_a_method_may_take_more_than_the_others() -> None:
    async with serving(access=Access(request_bytes={STREAM: 2 * MIB})) as served:
        one = pb.StreamMessagesRequest()
        one.messages.add()
        assert [each async for each in served.stream(padded(one.SerializeToString(), MIB))]
        assert (await refused(served.stream(padded(b"", 2 * MIB + 1))))[
            1
        ].code().name == "RESOURCE_EXHAUSTED"
        assert (await refused(served.get(padded(talk(), MIB))))[0] == "TOO_LARGE"


@pytest.mark.parametrize("method", ["GetConversation", "WatchConversation", "StreamMessages"])
@pytest.mark.parametrize("token", ["", "nonsense"])
async def test_nobody_is_refused_before_the_request_is_received(method: str, token: str) -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async with serving() as served:
        call = served.channel.stream_stream(f"/{SERVICE}/{method}")
        _, error = await refused(call(never(), metadata=stream_metadata(token)))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_compressed_requests_are_refused_unless_they_are_wanted() -> None:
    zipped = {"compression": grpc.Compression.Gzip}
    long = padded(talk(), REQUEST_BYTES)
    async with serving() as served:
        _, error = await refused(served.get(long, **zipped))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "gzip" in error.details()
        assert await served.get(long) == b""
    async with serving(limits=ServerLimits(compression=True)) as served:
        assert await served.get(long, **zipped) == b""
        assert (await refused(served.get(padded(talk(), MIB), **zipped)))[0] == "TOO_LARGE"


async def test_connections_are_bounded() -> None:
    async with serving(limits=ServerLimits(connections=2)) as served:
        assert await served.get(talk()) == b""
        open_ones = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(2)]
        # One of the two is over the limit: gRPC closes it without a word.
        ended = [asyncio.create_task(reader.read()) for reader, _ in open_ones]
        done, _ = await asyncio.wait(ended, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        for task in ended:
            task.cancel()
        for _, writer in open_ones:
            writer.close()
        assert await served.get(talk()) == b""


async def test_a_connection_without_a_call_is_closed() -> None:
    async with serving(limits=ServerLimits(idle_seconds=1.0)) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        # The preface and empty SETTINGS of HTTP/2: connected, and then no call.
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        async with asyncio.timeout(60):
            await reader.read()
        writer.close()
        # A watch is a call, and stays.
        watch = served.watch(
            pb.WatchConversationRequest(
                conversation_id="018f0000-0000-7000-8000-000000000001"
            ).SerializeToString()
        )
        assert await watch.read() == b""


async def test_a_stream_ends_when_its_caller_is_shut_out() -> None:
    admission = Admission()
    async with serving(access=Access(admission=admission)) as served:
        watch = served.watch(talk())
        assert await watch.read() == b""
        admission.update(["other"], [("acme", "bob")])
        admission.update(["other"], [("acme", "ann")])
        assert (await refused(watch))[0] == "AGENT_DISABLED"
        assert (await refused(served.get(talk())))[0] == "AGENT_DISABLED"
        admission.update(["acme"], [])
        assert (await refused(served.get(talk())))[0] == "TENANT_DISABLED"
        admission.update([], [])
        assert await served.get(talk()) == b""


async def test_a_stream_ends_when_its_key_is_taken_away(tmp_path: Any) -> None:
    file = tmp_path / "keys.json"
    keys = KeySet.generate()
    keys.save(file)
    async with serving(KeySet.load(file)) as served:
        watch = served.watch(talk())
        assert await watch.read() == b""
        KeySet.generate().save(file)
        assert (await refused(watch))[0] == "TOKEN_INVALID"

        async def is_refused() -> bool:
            return (await refused(served.get(talk())))[0] == "TOKEN_INVALID"

        await eventually(is_refused)
