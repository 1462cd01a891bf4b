"""The library for adapters of one's own, as the hub meets it: over gRPC."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest

from deskwire.adapters.v1 import system_adapter_service_pb2 as pb
from deskwire.adapters.v1 import system_adapter_service_pb2_grpc
from deskwire.events.v1.event_pb2 import Event
from deskwire_adapter import (
    DELIVERED,
    AdapterBase,
    CredentialsRefused,
    Incoming,
    Login,
    Outcome,
    PushFailed,
    Refreshed,
    Result,
    Session,
    SessionOver,
    Token,
    rate_limited,
    rejected,
    retry,
    serving,
)

UNTIL = datetime(2030, 1, 1, tzinfo=UTC)


class Crm(AdapterBase):
    """Does what the event's data say; plain functions and coroutines mixed."""

    program = "crm/1"
    config_schema = {"type": "object"}  # noqa: RUF012 - a constant

    def __init__(self) -> None:
        self.closed: list[str] = []

    async def auth(self, login: Login) -> Session:
        if login.credentials.get("password") != "open":
            raise CredentialsRefused("wrong password")
        adapter = self

        class Mine(Session):
            def close(self) -> None:
                adapter.closed.append(login.tenant_id)

        return Mine(login, expires=UNTIL)

    def push_one(self, session: Session, event: Incoming) -> Result:
        match event.data.get("do"):
            case "refuse":
                raise PushFailed(rejected("no such customer"))
            case "crash":
                raise KeyError("customer")
            case "expire":
                raise SessionOver("signed out")
            case "limit":
                return rate_limited("slow down", 2.5)
            case "nothing":
                return None  # type: ignore[return-value]
            case _:
                return Result(Outcome.DELIVERED, json.dumps(session.login.config, default=str))

    async def check(self, session: Session) -> str:
        return str(session.login.config.get("problem", ""))


def request(session: str, *what: str) -> pb.PushRequest:
    items = [
        pb.PushItem(event=Event(event_id=f"e{n}", subject=f"s{n}"), json=json.dumps({"data": {"do": each}}))
        for n, each in enumerate(what)
    ]  # fmt: skip
    return pb.PushRequest(session=session, items=items)


def names(response: pb.PushResponse) -> list[str]:
    return [Outcome(each.outcome).name for each in response.results]


async def test_what_an_adapter_does_is_told_as_the_contract_says_it() -> None:
    crm = Crm()
    async with (
        serving(crm, "127.0.0.1:0") as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        stub: Any = system_adapter_service_pb2_grpc.SystemAdapterServiceStub(channel)
        schema = await stub.Schema(pb.SchemaRequest(tenant_id="t"))
        assert (schema.adapter, json.loads(schema.config_schema)) == (
            "crm/1",
            {"type": "object"},
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Auth(pb.AuthRequest(tenant_id="t"))
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        login = pb.AuthRequest(
            tenant_id="t", credentials={"password": "open"}, config='{"n": 7, "d": 1.10}'
        )
        auth = await stub.Auth(login)
        assert auth.expire_time.ToDatetime(tzinfo=UTC) == UNTIL
        answer = await stub.Push(request(auth.session, "", "refuse", "crash", "nothing"))
        assert names(answer) == ["DELIVERED", "REJECTED", "UNKNOWN", "UNKNOWN"]
        assert [each.event_id for each in answer.results] == ["e0", "e1", "e2", "e3"]
        assert json.loads(answer.results[0].detail) == {"n": 7, "d": "1.10"}
        # A limit is everybody's: what is left isn't tried.
        answer = await stub.Push(request(auth.session, "", "limit", "refuse"))
        assert names(answer) == ["DELIVERED", "RATE_LIMITED", "RATE_LIMITED"]
        assert answer.results[2].retry_after.ToMilliseconds() == 2_500
        assert (await stub.Check(pb.CheckRequest(session=auth.session))).healthy
        # A session that is over, and one that never was.
        for session, what in ((auth.session, "expire"), (auth.session, ""), ("made-up", "")):
            assert names(await stub.Push(request(session, what))) == ["AUTH_EXPIRED"]
        assert crm.closed == ["t"]
        sick = await stub.Auth(
            pb.AuthRequest(
                tenant_id="u", credentials={"password": "open"}, config='{"problem": "full"}'
            )
        )
        checked = await stub.Check(pb.CheckRequest(session=sick.session))
        assert (checked.healthy, checked.detail) == (False, "full")
    assert crm.closed == ["t", "u"]


async def test_too_few_results_are_no_answer() -> None:
    class Short(AdapterBase):
        async def push(self, _session: Session, _events: Any) -> list[Result]:
            return [DELIVERED]

    async with (
        serving(Short(), "127.0.0.1:0") as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        stub: Any = system_adapter_service_pb2_grpc.SystemAdapterServiceStub(channel)
        session = (await stub.Auth(pb.AuthRequest(tenant_id="t"))).session
        with pytest.raises(grpc.aio.AioRpcError, match="1 results for 2 events"):
            await stub.Push(request(session, "", ""))


def test_a_pause_is_never_negative() -> None:
    assert retry("later", -1.0).message("e").retry_after.ToMicroseconds() == 0


async def test_one_of_many_fetches_a_token_and_before_it_ends() -> None:
    now = 0.0
    fetched: list[str] = []
    gate = asyncio.Event()

    async def fetch() -> Token:
        await gate.wait()
        fetched.append(f"t{len(fetched)}")
        return Token(fetched[-1], seconds=100.0)

    token = Refreshed(fetch, monotonic=lambda: now)
    waiting = [asyncio.create_task(token.get()) for _ in range(20)]
    await asyncio.sleep(0)
    gate.set()
    assert set(await asyncio.gather(*waiting)) == {"t0"}
    now = 89.0
    assert await token.get() == "t0"
    now = 90.0
    assert await token.get() == "t1"
    # Two calls are refused the same token: only the first of them is news.
    token.refused("t1")
    assert await token.get() == "t2"
    token.refused("t1")
    assert await token.get() == "t2"


async def test_a_fetch_that_fails_is_tried_again_by_the_next() -> None:
    answers = iter([OSError("away"), Token("t")])

    async def fetch() -> Token:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    token = Refreshed(fetch)
    with pytest.raises(OSError, match="away"):
        await token.get()
    assert await token.get() == "t"
