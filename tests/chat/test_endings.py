"""How a chat process ends its streams, told to stop or killed: the status is one that every retry policy repeats."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from deskwire.chat.v1 import conversation_pb2
from deskwire.chat.v1 import conversation_service_pb2 as pb
from deskwire.chat.v1.conversation_service_pb2_grpc import ConversationServiceStub
from deskwire.shard.v1 import shard_service_pb2 as shard_pb
from deskwire.shard.v1.shard_service_pb2_grpc import ShardServiceStub
from deskwire_chat.owners.forwarding import was_not_taken
from deskwire_common.auth import ANY_TENANT, Role, TokenSigner
from deskwire_common.errors import NotFound, from_rpc_error
from deskwire_common.migrations import migrate
from deskwire_common.rpc import make_channel, refuse, stream_metadata
from support.ports import free_port
from support.suite import new_id

Open = Callable[[grpc.aio.Channel, str, str], Any]
CUT = [
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
]


def watch(channel: grpc.aio.Channel, token: str, talk: str) -> Any:
    request = pb.WatchConversationRequest(conversation_id=talk)
    stub = ConversationServiceStub(channel)
    return stub.WatchConversation(request, metadata=stream_metadata(token))


def stream(channel: grpc.aio.Channel, token: str, _talk: str) -> Any:
    return ConversationServiceStub(channel).StreamMessages(metadata=stream_metadata(token))


def link(channel: grpc.aio.Channel, token: str, _talk: str) -> Any:
    return ShardServiceStub(channel).Link(metadata=stream_metadata(token))


async def ending(call: Any) -> tuple[str, str, str]:
    """Read to the end; return the code and the reason, as gRPC has them and as the suite reads them."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        read = from_rpc_error(error)
        return error.code().name, read.code.name, read.reason_name
    return "OK", "OK", ""


@asynccontextmanager
async def chat_process(
    tmp_path: Path, kafka: str, keys_file: Path
) -> AsyncIterator[tuple[Process, str]]:
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    await migrate(url, "deskwire_chat")
    address = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        "DESKWIRE_GRPC_LISTEN": address,
        "DESKWIRE_DATABASE_URL": url,
        "DESKWIRE_KAFKA": kafka,
        "DESKWIRE_KEYS_FILE": str(keys_file),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deskwire_chat", "serve",
        env=environment, stdout=DEVNULL, stderr=DEVNULL,
    )  # fmt: skip
    try:
        yield process, address
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def talk_of(channel: grpc.aio.Channel, token: str) -> str:
    """Begin a conversation, once the process serves."""
    talk = new_id()
    request = pb.SendMessageRequest(
        conversation_id=talk,
        client_msg_id="m",
        content=conversation_pb2.Content(text="hello"),
    )
    metadata = [("authorization", f"Bearer {token}")]
    await ConversationServiceStub(channel).SendMessage(
        request, metadata=metadata, timeout=40, wait_for_ready=True
    )
    return talk


async def open_again_and_again(
    opened: Callable[[], Any], over: asyncio.Event
) -> set[tuple[str, str, str]]:
    """Open streams, a new one each few milliseconds; return how they ended."""
    calls = []
    while not over.is_set():
        calls.append(asyncio.create_task(ending(opened())))
        await asyncio.sleep(0.02)
    return set(await asyncio.gather(*calls))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_every_stream_of_a_process_that_goes_is_unavailable(
    how: signal.Signals, tmp_path: Path, kafka: str, keys_file: Path, signer: TokenSigner
) -> None:
    visitor = signer.mint(tenant="acme", role=Role.VISITOR, subject="me")
    service = signer.mint(tenant=ANY_TENANT, role=Role.SERVICE, subject="gateway")
    over = asyncio.Event()
    async with (
        chat_process(tmp_path, kafka, keys_file) as (process, address),
        make_channel(address, bare=True) as channel,
    ):
        talk = await talk_of(channel, visitor)
        kinds = ((watch, visitor), (stream, visitor), (link, service))
        first = [each(channel, token, talk) for each, token in kinds]
        await first[0].read()
        await first[2].write(
            shard_pb.LinkRequest(
                items=[
                    shard_pb.LinkUpItem(hello=shard_pb.LinkHello(worker_id=new_id(), generation=1))
                ]
            )
        )
        await first[2].read()
        ends = [asyncio.create_task(ending(call)) for call in first]
        later = [
            asyncio.create_task(open_again_and_again(lambda: watch(channel, visitor, talk), over)),
            asyncio.create_task(open_again_and_again(lambda: link(channel, service, talk), over)),
        ]
        await asyncio.sleep(0.2)
        process.send_signal(how)
        await process.wait()
        over.set()
        reason = "SHUTTING_DOWN" if how is signal.SIGTERM else "DEPENDENCY_UNAVAILABLE"
        assert [await each for each in ends] == [("UNAVAILABLE", "UNAVAILABLE", reason)] * len(ends)
        for each in later:
            # A call that gRPC received and dropped, as the process had not begun it, is CANCELLED without details.
            assert {code for _, code, _ in await each} <= {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}


@pytest.mark.parametrize("code", CUT, ids=lambda code: code.name)
async def test_what_the_transport_says_of_an_owner_that_went_is_no_fault(
    code: grpc.StatusCode,
) -> None:
    async def fail(request: bytes, context: Any) -> AsyncIterator[bytes]:
        if request:
            await refuse(context, NotFound("a status of the suite's own"))
        await context.abort(code, code.name)
        yield b""

    server = grpc.aio.server()
    handler = grpc.unary_stream_rpc_method_handler(fail)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Test", {"Fail": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for request, gone in ((b"", True), (b"x", False)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_stream("/test.Test/Fail")(request).read()
            assert was_not_taken(caught.value) is gone
    await server.stop(None)
