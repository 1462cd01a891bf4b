"""Webhooks: each event is POSTed to a URL, signed as Standard Webhooks says."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Final

from yarl import URL

from deskwire_common.clock import Clock, to_micros
from deskwire_common.quota import Shares
from deskwire_common.sealing import SealBroken, Sealer
from deskwire_common.targets import Targets
from deskwire_events.domain import Outcome, Result, Subscription, webhooks
from deskwire_events.sinks.port import Away, Faulty, Outgoing, Sink, opened
from deskwire_events.sinks.posting import Answer, Poster, Unanswered, Unreachable

USER_AGENT: Final = "deskwire-webhooks/1"
_GONE: Final = 410
_BUSY: Final = frozenset({429, 503})
#: Refusals that a later try may not meet: a request that came too slowly, or too early.
_LATER: Final = frozenset({408, 425})
_TRACEPARENT: Final = re.compile(r"[0-9a-f-]{55}")
_PER_TENANT: Final = 64


@dataclass(frozen=True, slots=True)
class WebhookSetup:
    """How webhooks are called: which addresses, whom to trust, how many at a time for each, for how long (seconds).

    `allow_http`: also without TLS. `shares` bounds the calls of all webhooks of a tenant together.
    """

    targets: Targets
    tls: ssl.SSLContext
    allow_http: bool
    sealer: Sealer
    parallel: int
    seconds: float
    shares: Shares = field(default_factory=lambda: Shares(_PER_TENANT))


class WebhookSink(Sink):
    """One webhook."""

    def __init__(self, subscription: Subscription, *, setup: WebhookSetup, clock: Clock) -> None:
        self._subscription = subscription
        self._setup = setup
        self._clock = clock
        self.parallel = setup.parallel
        self._url = URL(str(subscription.sink["url"]), encoded=True)
        self._poster = Poster(
            subscription.tenant,
            self._url,
            targets=setup.targets,
            tls=setup.tls,
            parallel=setup.parallel,
            seconds=setup.seconds,
        )
        self._secrets: dict[str, str] = {}

    async def ready(self) -> None:
        """Open the secrets; connections are made when they are needed. Raises Away.

        What the operator allowed when the webhook was made proves nothing about now.
        """
        if self._secrets:
            return
        if self._url.scheme == "http" and not self._setup.allow_http:
            raise Away("its url must begin with https://: the hub's operator doesn't allow http")
        try:
            self._secrets = opened(self._subscription, self._setup.sealer)
        except SealBroken as error:
            raise Away("the hub can't sign at the moment", detail=str(error)) from error

    async def deliver(self, batch: Sequence[Outgoing]) -> Sequence[Result]:
        """POST events; the engine gives one at a time. Raises Away when nobody is there, Faulty for a failure."""
        return [await self._delivered(each) for each in batch]

    async def _delivered(self, event: Outgoing) -> Result:
        try:
            result = result_of(await self.send(event), self._now)
        except Unreachable as error:
            raise Away(error.told, detail=str(error)) from error
        except Unanswered as error:
            raise Faulty(str(error)) from error
        if result.outcome is Outcome.RETRY and not result.gone:
            # The engine finds out whether it is this event's fault, or its receiver's.
            raise Faulty(result.detail)
        return result

    async def send(self, event: Outgoing) -> Answer:
        """POST one event; `ready` was called. Raises Unreachable, Unanswered."""
        async with self._setup.shares.of(self._subscription.tenant):
            return await self._poster.post(self._headers(event), event.json)

    async def close(self) -> None:
        """End the connections."""
        await self._poster.close()

    def _headers(self, event: Outgoing) -> Mapping[str, str]:
        names = [webhooks.CURRENT]
        if webhooks.previous_until(self._subscription) > to_micros(self._clock.now()):
            names.append(webhooks.PREVIOUS)
        signer = webhooks.Signer(tuple(self._secrets[name] for name in names))
        traced = {"traceparent": event.traceparent}
        return {
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
            **signer.headers(event.event_id, int(self._now), event.json),
            **(traced if _TRACEPARENT.fullmatch(event.traceparent) else {}),
        }

    @property
    def _now(self) -> float:
        return to_micros(self._clock.now()) / 1e6


def result_of(answer: Answer, now: float) -> Result:
    """What an answer means for its event; `now` in seconds since 1970."""
    status = answer.status
    told = f"HTTP {status}"
    if 200 <= status < 300:
        return Result(Outcome.DELIVERED)
    if status == _GONE:
        return Result(Outcome.RETRY, f"{told}: it wants no more events", gone=True)
    if status in _BUSY:
        return Result(Outcome.RATE_LIMITED, told, _asked(answer.retry_after, now))
    if 300 <= status < 400:
        return Result(Outcome.RETRY, f"{told}: redirects aren't followed, give its new url")
    if status in _LATER or status >= 500:
        return Result(Outcome.RETRY, told)
    return Result(Outcome.REJECTED, told)


def _asked(retry_after: str, now: float) -> float | None:
    """The seconds of a header Retry-After (RFC 9110 10.2.3): a number, or a date. None when it is neither."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        # No pause is so long that more digits matter; the engine bounds it further.
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None
