"""A webhook's sink against real servers on this machine: what is sent, what answers mean, whom it calls."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks.webhooks import WebhookVerificationError

from deskwire_common.clock import SystemClock, to_micros
from deskwire_common.errors import InvalidArgument
from deskwire_common.sealing import Sealer
from deskwire_common.targets import Resolve, Targets, parse_rules, system_resolve
from deskwire_events import domain
from deskwire_events.domain import Outcome, SinkKind, Subscription, Wanted, webhooks
from deskwire_events.sinks import Away, Faulty, WebhookSetup, WebhookSink, result_of, tls_context
from deskwire_events.sinks.posting import NOT_THERE, Answer
from support.names import Names
from support.outgoing import outgoing
from support.ports import free_port
from support.receiver import Receiver, certificates, raw, receiving, verify

SECRET = webhooks.secret_text(b"s" * webhooks.SECRET_BYTES)
NEXT_SECRET = webhooks.secret_text(b"n" * webhooks.SECRET_BYTES)
SEALER = Sealer([b"k" * 32])
OPEN = "127.0.0.0/8:*"


def webhook(url: str) -> Subscription:
    sealed = SEALER.seal(SECRET, domain.owner_of_secrets("t", "billing"))
    return domain.create(
        None, tenant="t", subscription_id="billing", incarnation="i", system_id="", wanted=Wanted(), role="operator",
        now=1_767_225_600_000_000, kind=SinkKind.WEBHOOK, sink={"url": url}, secrets={webhooks.CURRENT: sealed},
    )  # fmt: skip


@asynccontextmanager
async def calling(
    url: str | Subscription,
    *,
    rules: str = OPEN,
    names: Resolve = system_resolve,
    tls: ssl.SSLContext | None = None,
    parallel: int = 8,
    seconds: float = 20.0,
    sealer: Sealer = SEALER,
    allow_http: bool = True,
) -> AsyncIterator[WebhookSink]:
    setup = WebhookSetup(
        targets=Targets(parse_rules(rules), names),
        tls=tls or tls_context(None),
        allow_http=allow_http,
        sealer=sealer,
        parallel=parallel,
        seconds=seconds,
    )
    of = url if isinstance(url, Subscription) else webhook(url)
    sink = WebhookSink(of, setup=setup, clock=SystemClock())
    try:
        await sink.ready()
        yield sink
    finally:
        await sink.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


async def test_a_delivery_verifies_with_the_published_library(receiver: Receiver) -> None:
    event = outgoing("a", amount=7, name="Zoë")
    async with calling(receiver.url) as sink:
        (result,) = await sink.deliver([event])
    assert result.outcome is Outcome.DELIVERED
    (got,) = receiver.got
    assert verify(SECRET, got)["event_id"] == event.event_id
    assert got.body == event.json
    assert got.headers["webhook-id"] == event.event_id
    assert got.headers["content-type"] == "application/json"
    assert got.headers["user-agent"].startswith("deskwire-webhooks/")
    assert got.headers["traceparent"] == event.traceparent
    assert "cookie" not in got.headers
    with pytest.raises(WebhookVerificationError):
        verify(NEXT_SECRET, got)
    with pytest.raises(WebhookVerificationError):
        verify(SECRET, replace(got, body=got.body + b" "))


async def test_both_secrets_sign_while_they_are_rotated(receiver: Receiver) -> None:
    now = to_micros(SystemClock().now())
    sealed = SEALER.seal(NEXT_SECRET, domain.owner_of_secrets("t", "billing"))
    for until, old_signs in ((now + 60_000_000, True), (now - 1, False)):
        receiver.got.clear()
        async with calling(webhooks.rotate(webhook(receiver.url), sealed, until)) as sink:
            await sink.deliver([outgoing()])
        (got,) = receiver.got
        assert verify(NEXT_SECRET, got)
        assert len(got.headers["webhook-signature"].split()) == 1 + old_signs
        if old_signs:
            assert verify(SECRET, got)
        else:
            with pytest.raises(WebhookVerificationError):
                verify(SECRET, got)


async def test_a_secret_that_no_key_opens_stops_nothing_for_good(receiver: Receiver) -> None:
    with pytest.raises(Away) as caught:
        async with calling(receiver.url, sealer=Sealer([b"x" * 32])):
            pass
    assert SECRET not in caught.value.message + caught.value.detail
    assert receiver.got == []


async def test_http_that_is_no_longer_allowed_is_left(receiver: Receiver) -> None:
    with pytest.raises(Away, match="must begin with https"):
        async with calling(receiver.url, allow_http=False):
            pass
    assert receiver.got == []


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.DELIVERED), (202, Outcome.DELIVERED), (204, Outcome.DELIVERED),
        (400, Outcome.REJECTED), (401, Outcome.REJECTED), (404, Outcome.REJECTED), (422, Outcome.REJECTED),
        (429, Outcome.RATE_LIMITED), (503, Outcome.RATE_LIMITED),
    ],
)  # fmt: skip
async def test_what_a_status_means(receiver: Receiver, status: int, outcome: Outcome) -> None:
    receiver.status = status
    async with calling(receiver.url) as sink:
        (result,) = await sink.deliver([outgoing()])
    assert result.outcome is outcome
    assert not result.gone


@pytest.mark.parametrize("status", [301, 302, 307, 308, 408, 425, 500, 502, 504])
async def test_a_failure_is_the_engine_s_to_judge(receiver: Receiver, status: int) -> None:
    receiver.status = status
    async with calling(receiver.url) as sink:
        with pytest.raises(Faulty, match=str(status)):
            await sink.deliver([outgoing()])


async def test_gone_is_told(receiver: Receiver) -> None:
    receiver.status = 410
    async with calling(receiver.url) as sink:
        (result,) = await sink.deliver([outgoing()])
    assert result.gone


NOW = datetime(2026, 11, 28, 9, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0), (" 7 ", 7.0), ("0", 0.0), ("9" * 4000, 999_999_999.0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(hours=1), usegmt=True), 0.0),
        ("", None), ("-5", None), ("1.5", None), ("soon", None), ("²", None),
        ("Fri, 31 Dec 9999 99:99:99 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(header: str, seconds: float | None) -> None:
    for status in (429, 503):
        result = result_of(Answer(status, header), NOW.timestamp())
        assert (result.outcome, result.retry_after) == (Outcome.RATE_LIMITED, seconds)


async def test_events_go_out_side_by_side_over_connections_that_are_kept(
    receiver: Receiver,
) -> None:
    together = asyncio.Event()

    async def respond(_request: web.Request) -> web.Response:
        if receiver.most == 4:
            together.set()
        async with asyncio.timeout(30):
            await together.wait()
        return web.Response(text="thanks")

    receiver.respond = respond
    async with calling(receiver.url, parallel=4) as sink:
        assert sink.parallel == 4
        for _ in range(3):
            await asyncio.gather(*(sink.deliver([outgoing(str(n))]) for n in range(4)))
    assert receiver.most == 4
    assert len(receiver.got) == 12
    assert len({got.peer for got in receiver.got}) == 4


async def test_a_kept_connection_that_was_closed_meanwhile_costs_no_try(receiver: Receiver) -> None:
    """Its server closes after each answer without saying so."""

    async def answer(reader: Any, writer: Any) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        # A second request finds it gone.
        await reader.read(100_000)
        await reader.read(1)
        writer.transport.abort()

    async with raw(answer) as url, calling(url) as sink:
        for _ in range(3):
            (result,) = await sink.deliver([outgoing()])
            assert result.outcome is Outcome.DELIVERED


async def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    async with receiving() as inside:
        receiver.status, receiver.answer_headers = 307, {"Location": inside.url}
        async with calling(receiver.url) as sink:
            with pytest.raises(Faulty, match="redirects aren't followed"):
                await sink.deliver([outgoing()])
        assert inside.got == []


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/", "http://[::ffff:127.0.0.1]:{port}/", "http://localhost:{port}/",
        "http://inside.example.org:{port}/",
    ],
)  # fmt: skip
async def test_what_no_rule_allows_is_not_called(receiver: Receiver, url: str) -> None:
    names = Names(["127.0.0.1"])
    url = url.format(port=receiver.port)
    async with calling(url, rules="public:*", names=names) as sink:
        with pytest.raises(Away) as caught:
            await sink.deliver([outgoing()])
    assert caught.value.message == NOT_THERE
    assert "127.0.0.1" in caught.value.detail
    assert receiver.got == []


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0x7f000001", "0177.0.0.1"])
async def test_other_spellings_of_an_address_are_not_called(receiver: Receiver, host: str) -> None:
    names = Names(["127.0.0.1"])
    async with calling(f"http://{host}:{receiver.port}/", rules="public:*", names=names) as sink:
        with pytest.raises((Away, Faulty)):
            await sink.deliver([outgoing()])
    assert receiver.got == []


async def test_one_forbidden_address_of_a_name_refuses_all(receiver: Receiver) -> None:
    names = Names(["127.0.0.1", "::1"])
    async with calling(f"http://two.example.org:{receiver.port}/", names=names) as sink:
        with pytest.raises(Away):
            await sink.deliver([outgoing()])
    assert receiver.got == []


async def test_a_name_that_is_rebound_is_dialled_as_it_was_checked(receiver: Receiver) -> None:
    """The second answer, were it asked for, would be dialled without a check."""
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    async with calling(
        f"http://hooks.example.org:{receiver.port}/", rules="127.0.0.1:*", names=names
    ) as sink:
        (result,) = await sink.deliver([outgoing()])
        assert result.outcome is Outcome.DELIVERED
        assert names.asked == ["hooks.example.org"]
        # The connection stands; a new one is resolved and checked anew.
        await sink.close()
        with pytest.raises(Away) as caught:
            await sink.deliver([outgoing()])
    assert "127.0.0.2" in caught.value.detail
    assert [got.headers["host"] for got in receiver.got] == [f"hooks.example.org:{receiver.port}"]


async def test_nothing_answers(receiver: Receiver) -> None:
    async with calling(f"http://127.0.0.1:{free_port()}/") as sink:
        with pytest.raises(Away) as caught:
            await sink.deliver([outgoing()])
    assert caught.value.message == NOT_THERE


async def test_no_proxy_of_the_environment_is_used(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiving() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        async with calling(receiver.url) as sink:
            await sink.deliver([outgoing()])
        assert proxy.got == []
    assert len(receiver.got) == 1


async def test_tls_checks_the_name_and_who_signed(tmp_path: Path) -> None:
    made = certificates(tmp_path, "hooks.example.org")
    names = Names(["127.0.0.1"])
    trusted = tls_context(made.ca_file)

    async def refusal(url: str, tls: ssl.SSLContext | None) -> str:
        async with calling(url, names=names, tls=tls) as sink:
            with pytest.raises(Away) as caught:
                await sink.deliver([outgoing()])
        return caught.value.message

    async with receiving(made.server, "hooks.example.org") as receiver:
        async with calling(receiver.url, names=names, tls=trusted) as sink:
            (result,) = await sink.deliver([outgoing()])
        assert result.outcome is Outcome.DELIVERED
        other = receiver.url.replace("hooks.", "other.")
        assert "certificate isn't trusted" in await refusal(receiver.url, None)
        assert "certificate isn't trusted" in await refusal(other, trusted)
        plain = receiver.url.replace("https", "http")
        async with calling(plain, names=names) as sink:
            with pytest.raises(Faulty):
                await sink.deliver([outgoing()])
        assert len(receiver.got) == 1


Answering = Callable[[Any, Any], Any]


async def silent(_reader: Any, _writer: Any) -> None:
    await asyncio.Event().wait()


async def drips_its_head(_reader: Any, writer: Any) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-Slow: 1\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


async def never_begins(_reader: Any, writer: Any) -> None:
    while True:
        writer.write(b"HTTP/1.1 102 Processing\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("answer", [silent, drips_its_head, never_begins])
async def test_a_peer_that_never_ends_is_left(answer: Answering) -> None:
    async with raw(answer) as url, calling(url, seconds=0.3) as sink:
        with pytest.raises(Faulty, match=r"no answer within|the connection broke"):
            await sink.deliver([outgoing()])


async def floods_its_head(reader: Any, writer: Any) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * (1 << 20))
    await writer.drain()


async def speaks_no_http(reader: Any, writer: Any) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"\x00\x01\x02" * 100)
    await writer.drain()


@pytest.mark.parametrize("answer", [floods_its_head, speaks_no_http])
async def test_what_is_no_answer_is_a_failure(answer: Answering) -> None:
    async with raw(answer) as url, calling(url) as sink:
        with pytest.raises(Faulty, match="the connection broke, or what came is no HTTP"):
            await sink.deliver([outgoing()])


async def test_an_endless_body_is_not_read() -> None:
    written = 0

    async def answer(reader: Any, writer: Any) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()
            written += 65_536

    async with raw(answer) as url, calling(url) as sink:
        (result,) = await sink.deliver([outgoing()])
    assert result.outcome is Outcome.DELIVERED
    # What the sockets' buffers take is beyond anybody's reach.
    assert written < 64 << 20


async def test_a_large_event_goes_whole(receiver: Receiver) -> None:
    event = outgoing(text="x" * (2 << 20))
    async with calling(receiver.url) as sink:
        (result,) = await sink.deliver([event])
    assert result.outcome is Outcome.DELIVERED
    assert json.loads(receiver.got[0].body)["data"]["text"] == "x" * (2 << 20)
    assert verify(SECRET, receiver.got[0])


async def test_a_tenants_calls_are_bounded_together(receiver: Receiver) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(calling(receiver.url, parallel=40))
        second = await stack.enter_async_context(calling(receiver.url, parallel=40))
        second._setup = first._setup
        enough = asyncio.Event()

        async def respond(_request: web.Request) -> web.Response:
            if receiver.open >= 64:
                enough.set()
            async with asyncio.timeout(30):
                await enough.wait()
            return web.Response()

        receiver.respond = respond
        events = [outgoing(str(n)) for n in range(40)]
        await asyncio.gather(*(sink.deliver([each]) for sink in (first, second) for each in events))
    assert receiver.most == 64
    assert len(receiver.got) == 80


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://hooks.example.org/", "must begin with https://"), ("ftp://hooks.example.org/", "is none"),
        ("https:///path", "is none"), ("hooks.example.org/x", "is none"),
        ("https://hooks.example.org:99999/", "is none"), ("https://[::1/", "is none"), ("", "is none"),
        ("https://me:pass@hooks.example.org/", "has a user or a password"),
        ("https://hooks.example.org/#here", "has a fragment"), ("https://hooks.example.org/a b", "encode them"),
        ("https://hooks.example.org/\r\nX: y", "encode them"), ("https://hööks.example.org/", "encode them"),
    ],
)  # fmt: skip
def test_what_is_no_url(url: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        webhooks.check_url(url, allow_http=False, field="url")
    webhooks.check_url("https://hooks.example.org:8443/a?b=%20c", allow_http=False, field="url")
    webhooks.check_url("http://[::1]:1/", allow_http=True, field="url")
