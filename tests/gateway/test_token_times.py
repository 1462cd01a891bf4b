"""Tokens that time or a new one can cure: who comes too late or too early comes back, and isn't sent away for good."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from deskwire.chat.v1 import agent_service_pb2, agent_service_pb2_grpc
from deskwire.gateway.v1 import frame_pb2
from deskwire_client import Client, Refused
from deskwire_common.auth import KeySet, Role, TokenSigner
from deskwire_common.clock import ManualClock
from deskwire_common.errors import from_rpc_error
from support import eventually
from support.suite import Desk, Start, new_id
from support.wire import reason, wire

Signed = Callable[..., str]
"""Returns a token signed by a machine whose clock is so many seconds ahead."""


@pytest.fixture
def signed(keys_file: Path) -> Signed:
    keys = KeySet.load(keys_file)

    def signed(d: Desk, ahead: float, *, ttl: float = 600.0, role: Role = Role.VISITOR) -> str:
        clock = ManualClock(datetime.now(UTC) + timedelta(seconds=ahead))
        return TokenSigner(keys, clock).mint(tenant=d.tenant, role=role, subject=new_id(), ttl=ttl)

    return signed


async def turned_away(d: Desk, token: str) -> tuple[frame_pb2.Error, frame_pb2.Goodbye]:
    """Say Hello with a token that isn't good now; return what is answered."""
    async with wire(d) as w:
        await w.say(hello=frame_pb2.Hello(token=token))
        error: frame_pb2.Error = await w.hear("error")
        goodbye: frame_pb2.Goodbye = await w.hear("goodbye")
        await w.socket.wait_closed()
        assert w.socket.close_code == goodbye.code
        return error, goodbye


async def test_who_comes_with_an_expired_token_may_come_back_with_another(
    start: Start, signed: Signed
) -> None:
    async with start() as d:
        error, goodbye = await turned_away(d, signed(d, -12, ttl=6))  # exp = now - 6
        assert (reason(error.reason), error.temporary) == ("TOKEN_EXPIRED", False)
        assert (reason(goodbye.reason), goodbye.code) == ("TOKEN_EXPIRED", 3001)
        assert goodbye.reconnect
        assert goodbye.after.ToMilliseconds() == 1000


@pytest.mark.parametrize("ahead", [6, 30])
async def test_a_website_whose_clock_is_ahead_is_welcome(
    start: Start, signed: Signed, ahead: int
) -> None:
    async with start() as d, wire(d, signed(d, ahead)) as w:
        await w.works()


async def test_who_comes_too_early_is_told_when_to_come_back(start: Start, signed: Signed) -> None:
    async with start() as d:
        token = signed(d, 90)
        error, goodbye = await turned_away(d, token)
        assert (reason(error.reason), error.temporary) == ("TOKEN_INVALID", True)
        assert (reason(goodbye.reason), goodbye.code) == ("TOKEN_INVALID", 3001)
        assert goodbye.reconnect
        # The difference to the minute of grace, less what the test took.
        for after in (error.retry_after, goodbye.after):
            assert 0 < after.ToMilliseconds() <= 30_000


async def test_a_call_is_told_the_same(start: Start, signed: Signed) -> None:
    async with start() as d:

        async def call(token: str) -> Any:
            stub = agent_service_pb2_grpc.AgentServiceStub(channel)
            request = agent_service_pb2.GetAgentRequest(agent_id="nobody")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetAgent(request, metadata=(("authorization", f"Bearer {token}"),))
            return from_rpc_error(caught.value)

        async with grpc.aio.insecure_channel(f"127.0.0.1:{d.chat.port}") as channel:
            early = await call(signed(d, 90, role=Role.AGENT))
            assert (early.reason_name, early.temporary) == ("TOKEN_INVALID", True)
            assert 0 < early.retry_after <= 30
            late = await call(signed(d, -12, ttl=6, role=Role.AGENT))
            assert (late.reason_name, late.retry_after) == ("TOKEN_EXPIRED", None)
            admitted = await call(signed(d, 30, role=Role.AGENT))
            assert admitted.code is grpc.StatusCode.NOT_FOUND


async def test_a_token_that_is_never_good_ends_it(start: Start, signed: Signed) -> None:
    async with start() as d:
        stranger = TokenSigner(KeySet.generate())
        never = {
            "by no known key": stranger.mint(tenant=d.tenant, role=Role.VISITOR, subject="v"),
            "ends before it begins": signed(d, 600, ttl=-100),
        }
        for why, token in never.items():
            error, goodbye = await turned_away(d, token)
            assert (goodbye.code, goodbye.reconnect, error.temporary) == (3501, False, False), why
            assert not goodbye.HasField("after")


async def test_the_client_fetches_a_new_token(start: Start) -> None:
    async with start(ping_interval=1.0, visitor_ping_interval=1.0) as d:
        behind, asked = 8.0, 0
        kept, ends = "", 0.0

        def by_a_late_clock() -> str:
            """Keep a token until it is over by a clock that is behind, as a page in a browser may."""
            nonlocal kept, ends, asked
            asked += 1
            if time.time() - behind >= ends:
                # Every token signed from here on is good for long.
                ends = time.time() + (600 if kept else 1)
                kept = d.token(Role.VISITOR, "v", ttl=ends - time.time())
            return kept

        async with Client(d.url, by_a_late_clock) as client:
            talk = new_id()
            await client.post(talk, "before")
            await eventually(lambda: ends > time.time() + 500, timeout=40)
            await eventually(lambda: client.connected, timeout=20)
            assert await client.post(talk, "after") is not None
            # It came back by itself, and didn't ask in a loop meanwhile.
            assert client.reconnects >= 1
            assert asked < 30


async def test_the_client_gives_up_the_only_token_there_is(start: Start, signed: Signed) -> None:
    async with start() as d:
        with pytest.raises(Refused, match="TOKEN_EXPIRED"):
            async with asyncio.timeout(20):
                await Client(d.url, signed(d, -12, ttl=6)).connect()


async def test_the_client_waits_until_its_only_token_is_good(start: Start, signed: Signed) -> None:
    async with start() as d, Client(d.url, signed(d, 64)) as client:
        assert client.reconnects >= 1
        await client.send(new_id(), "at last")
