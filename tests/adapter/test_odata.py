"""The OData adapter against a service that forgets tokens, changes under it, limits and fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from deskwire.events.v1.event_pb2 import Event
from deskwire_adapter import CredentialsRefused, Incoming, Login, Outcome, SessionOver, serving
from deskwire_adapter.conformance import Grade, Subject, examine
from deskwire_adapter.service import AdapterService
from deskwire_adapter.shipped.odata import ODataAdapter, ODataSession
from deskwire_common.targets import Targets, parse_rules
from support.odata import Service, odata_service

BASIC = {"user": "desk", "password": "open sesame"}
OAUTH = {"client_id": "desk", "client_secret": "open sesame"}


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with odata_service() as found:
        yield found


def config(service: Service, **more: Any) -> dict[str, Any]:
    return {
        "url": service.url, "entity_set": "Customers", "key": "subject", "key_field": "Number",
        "fields": {"Email": "data.email", "Limit": "data.limit"}, "event_id_field": "LastEvent",
        "sequence_field": "Version", **more,
    }  # fmt: skip


def login(service: Service, credentials: dict[str, str] = BASIC, **more: Any) -> Login:
    return Login("shop", config(service, **more), credentials)


def adapter() -> ODataAdapter:
    return ODataAdapter(Targets(parse_rules("127.0.0.1:*")))


@pytest.fixture
async def session(service: Service) -> AsyncIterator[ODataSession]:
    found = await adapter().auth(login(service))
    service.calls.clear()
    yield found
    await found.close()


def event(number: int, subject: str = "c-1", sequence: int = 1, **data: Any) -> Incoming:
    text = json.dumps({"subject": subject, "data": data})
    return Incoming(Event(event_id=f"e-{number}", subject=subject, sequence=sequence), text)


async def push(session: ODataSession, *events: Incoming) -> list[Any]:
    return list(await AdapterService(adapter())._push(session, events))


async def outcomes(session: ODataSession, *events: Incoming) -> list[str]:
    return [each.outcome.name for each in await push(session, *events)]


async def test_entities_are_made_and_changed_once(service: Service, session: ODataSession) -> None:
    hostile = "o'neil/ü?#%"
    told = await outcomes(
        session,
        event(1, email="a@example.com", limit=129.10),
        event(1, email="a@example.com"),
        event(3, sequence=3, email="c@example.com"),
        event(2, sequence=2, email="b@example.com"),
        event(4, hostile, email="d@example.com"),
        event(5, hostile, sequence=2),
    )
    assert told == ["DELIVERED", "DUPLICATE", "DELIVERED", "DUPLICATE", "DELIVERED", "DELIVERED"]
    assert service.entities["c-1"] == {
        "Number": "c-1", "Email": "c@example.com", "Limit": 129.10, "LastEvent": "e-3", "Version": 3,
    }  # fmt: skip
    assert service.entities[hostile]["Version"] == 2
    assert service.calls[:2] == ["GET Customers('c-1')", "POST Customers"]


async def test_what_somebody_else_changed_is_a_conflict(
    service: Service, session: ODataSession
) -> None:
    await push(session, event(1, email="a@example.com"))
    service.after_read = lambda key: service.write(key, {"Email": "by hand"})
    [told] = await push(session, event(2, sequence=2, email="b@example.com"))
    assert told.outcome is Outcome.CONFLICT
    assert service.entities["c-1"]["Email"] == "by hand"


async def test_a_csrf_token_that_ended_is_fetched_once_for_all(
    service: Service, session: ODataSession
) -> None:
    await push(session, event(1))
    service.csrf.clear()
    before = service.csrf_given
    told = await asyncio.gather(*(outcomes(session, event(n, f"c-{n}")) for n in range(10, 20)))
    assert told == [["DELIVERED"]] * 10
    assert service.csrf_given == before + 1


async def test_a_service_that_never_takes_the_token_is_asked_once_more_only(
    service: Service, session: ODataSession
) -> None:
    def never(request: web.Request) -> web.Response | None:
        if request.method == "POST":
            return web.Response(status=403, headers={"X-CSRF-Token": "Required"})
        return None

    service.trouble = never
    assert await outcomes(session, event(1)) == ["REJECTED"]
    assert service.calls.count("POST Customers") == 2


async def test_oauth_tokens_are_renewed_where_they_are_refused(service: Service) -> None:
    service.bearer = True
    token_url = f"http://127.0.0.1:{service.port}/token"
    found = await adapter().auth(login(service, OAUTH, token_url=token_url))
    service.tokens.clear()
    assert await outcomes(found, event(1)) == ["DELIVERED"]
    assert len(service.tokens) == 1
    await found.close()
    with pytest.raises(CredentialsRefused, match="answers 401"):
        await adapter().auth(login(service, {**OAUTH, "client_secret": "x"}, token_url=token_url))


async def test_credentials_that_ended_are_told(service: Service, session: ODataSession) -> None:
    service.trouble = lambda _request: web.Response(status=401)
    with pytest.raises(SessionOver):
        await push(session, event(1))
    with pytest.raises(CredentialsRefused, match="answers 401"):
        await adapter().auth(login(service))


@pytest.mark.parametrize(
    ("status", "headers", "outcome", "seconds"),
    [
        (429, {"Retry-After": "7"}, "RATE_LIMITED", 7.0),
        (429, {}, "RATE_LIMITED", None),
        (503, {"Retry-After": "Fri, 01 Jan 2100 00:00:00 GMT"}, "RATE_LIMITED", 3_600.0),
        (503, {"Retry-After": "soon"}, "RETRY", None),
        (500, {}, "RETRY", None),
        (400, {}, "REJECTED", None),
        (302, {"Location": "http://127.0.0.1:1/"}, "REJECTED", None),
    ],
)
async def test_statuses_have_their_outcomes(
    service: Service, session: ODataSession, status: int, headers: Any, outcome: str, seconds: Any
) -> None:
    service.trouble = lambda request: (
        web.Response(status=status, headers=headers) if request.method == "POST" else None
    )
    [told] = await push(session, event(1))
    assert (told.outcome.name, told.retry_after) == (outcome, seconds)


async def test_a_connection_that_breaks_is_unknown(service: Service, session: ODataSession) -> None:
    def cut(request: web.Request) -> None:
        if request.method == "POST":
            request.transport.abort()

    service.trouble = cut
    [told] = await push(session, event(1))
    assert told.outcome is Outcome.UNKNOWN


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://[::1]:1/", "may call"),
        ("http://localhost:1/", "may call"),
        ("ftp://127.0.0.1/", "is no http"),
        ("http://a:b@127.0.0.1/", "no user"),
        ("unix:///x", "is no http"),
    ],
)
async def test_addresses_that_no_rule_allows(service: Service, url: str, why: str) -> None:
    nowhere = ODataAdapter(Targets(parse_rules("127.0.0.1:*"), lambda _host: ["::1"]))
    with pytest.raises(CredentialsRefused, match=why):
        await nowhere.auth(login(service, url=url))


async def test_a_name_that_turns_inward_is_not_followed(service: Service) -> None:
    """What is dialled is what was checked, and each connection is checked."""
    answers = [["127.0.0.1"]]
    names = ODataAdapter(Targets(parse_rules("127.0.0.1:*"), lambda _host: answers[-1]))
    url = service.url.replace("127.0.0.1", "crm.example.org")
    found = await names.auth(login(service, url=url))
    assert await outcomes(found, event(1)) == ["DELIVERED"]
    await found.close()
    answers.append(["::1"])
    with pytest.raises(CredentialsRefused, match="may call"):
        await names.auth(login(service, url=url))


async def test_it_conforms(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESKWIRE_ADAPTER_TARGETS", "127.0.0.1:*")
    async with serving(ODataAdapter(), "127.0.0.1:0") as port:
        subject = Subject(
            f"127.0.0.1:{port}", config=json.dumps(config(service)), credentials=BASIC
        )
        report = await examine(subject)
    failed = {each.trial: each.text for each in report.findings if each.grade is Grade.FAILED}
    assert failed == {}
