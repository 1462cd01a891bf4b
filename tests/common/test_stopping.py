"""Streams that end since their server stops: the status is one that every retry policy tries again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from deskwire.chat.v1 import conversation_service_pb2 as pb
from deskwire.chat.v1 import conversation_service_pb2_grpc
from deskwire_common.auth import KeySet, Role, TokenSigner, TokenVerifier
from deskwire_common.errors import DeskwireError, from_rpc_error
from deskwire_common.rpc import RunningServer, methods_of, start_server, stream_metadata
from deskwire_common.validation import Validator

SERVICE = "deskwire.chat.v1.ConversationService"
KEYS = KeySet.generate()
TALK = "018f0000-0000-7000-8000-000000000001"
Open = Callable[[Any, str], Any]


class Endless(conversation_service_pb2_grpc.ConversationServiceServicer):
    """Streams that end by nothing but the end of their server."""

    def __init__(self) -> None:
        self.opened = asyncio.Semaphore(0)

    async def WatchConversation(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        self.opened.release()
        long = pb.WatchConversationResponse(epoch=1)
        long.messages.add().content.text = "x" * 100_000
        while not request.after_seq:
            yield long
        await asyncio.Event().wait()

    async def StreamMessages(self, requests: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        self.opened.release()
        yield pb.StreamMessagesResponse()
        async for _ in requests:
            pass


def quiet(stub: Any, token: str) -> Any:
    request = pb.WatchConversationRequest(conversation_id=TALK, after_seq=1)
    return stub.WatchConversation(request, metadata=stream_metadata(token))


def unread(stub: Any, token: str) -> Any:
    request = pb.WatchConversationRequest(conversation_id=TALK)
    return stub.WatchConversation(request, metadata=stream_metadata(token))


def both_ways(stub: Any, token: str) -> Any:
    return stub.StreamMessages(metadata=stream_metadata(token))


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[RunningServer, Endless, Any, str]]:
    endless = Endless()
    server = await start_server(
        listen="127.0.0.1:0",
        registrars=[
            lambda server: conversation_service_pb2_grpc.add_ConversationServiceServicer_to_server(
                endless, server
            )
        ],
        services=[SERVICE],
        authorization=dict.fromkeys(methods_of([SERVICE]), frozenset(Role)),
        verifier=TokenVerifier(KEYS),
        validator=Validator(),
    )
    token = TokenSigner(KEYS).mint(tenant="acme", role=Role.AGENT, subject="ann")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = conversation_service_pb2_grpc.ConversationServiceStub(channel)
        try:
            yield server, endless, stub, token
        finally:
            await server.stop(0)


async def end_of(call: Any) -> DeskwireError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await call.read() is not grpc.aio.EOF:
            pass
    return from_rpc_error(caught.value)


@pytest.mark.parametrize("opened", [quiet, unread, both_ways])
async def test_a_stream_that_its_service_did_not_end_says_that_the_server_stops(
    opened: Open,
) -> None:
    async with serving() as (server, endless, stub, token):
        calls = [opened(stub, token) for _ in range(5)]
        for _ in calls:
            await endless.opened.acquire()
        stopping = asyncio.create_task(server.stop(2.0))
        for call in calls:
            error = await end_of(call)
            assert (error.code.name, error.reason_name) == ("UNAVAILABLE", "SHUTTING_DOWN")
            assert error.retry_after
        await stopping


async def test_streams_that_are_over_do_not_keep_a_server_from_stopping() -> None:
    async with serving() as (server, endless, stub, token):
        over, left = both_ways(stub, token), quiet(stub, token)
        for _ in range(2):
            await endless.opened.acquire()
        await over.done_writing()
        assert [each async for each in over] == [pb.StreamMessagesResponse()]
        left.cancel()
        await server.stop(2.0)
