"""Webhooks: their URLs, their secrets, and the signatures of Standard Webhooks.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from yarl import URL

from deskwire_common.errors import InvalidArgument
from deskwire_events.domain.subscriptions import SinkKind, Subscription, no_subscription

SECRET_BYTES: Final = 32
_PREFIX: Final = "whsec_"
CURRENT: Final = "current"
PREVIOUS: Final = "previous"
_UNTIL: Final = "previous_until"


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs with one secret, or with two while it is rotated."""

    secrets: tuple[str, ...] = field(repr=False)
    """As their owner has them: `whsec_…`."""

    def headers(self, message_id: str, timestamp: int, body: bytes) -> Mapping[str, str]:
        """The headers of Standard Webhooks; `timestamp` in seconds since 1970."""
        signed = f"{message_id}.{timestamp}.".encode() + body
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(_signatures(self.secrets, signed)),
        }


def _signatures(secrets: Iterable[str], signed: bytes) -> Iterable[str]:
    for secret in secrets:
        key = base64.b64decode(secret.removeprefix(_PREFIX))
        yield "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def secret_text(secret: bytes) -> str:
    """A secret as its owner gets it."""
    return _PREFIX + base64.b64encode(secret).decode()


def check_url(text: str, *, allow_http: bool, field: str) -> None:
    """Raises InvalidArgument that says what is wrong with the URL of a webhook."""

    def wrong(why: str) -> InvalidArgument:
        return InvalidArgument(f"the url {why}", field=field)

    if not text.isascii() or not text.isprintable() or " " in text:
        raise wrong("has characters that a URL has not: encode them")
    try:
        url = URL(text, encoded=True)
        host, port = url.host, url.port
    except ValueError as error:
        raise wrong("is none: https://HOST/PATH") from error
    if url.scheme not in {"https", "http"} or not host or not port:
        raise wrong("is none: https://HOST/PATH")
    if url.scheme == "http" and not allow_http:
        raise wrong("must begin with https://: the hub's operator doesn't allow http")
    if url.user is not None or url.password is not None:
        raise wrong("has a user or a password: it is read back, so it must be no secret")
    if "#" in text:
        raise wrong("has a fragment, which no server gets")


def rotate(webhook: Subscription, sealed: str, until: int) -> Subscription:
    """It with another secret; the one that it has signs too, until then (microseconds)."""
    return webhook.changed(
        sink={**webhook.sink, _UNTIL: until},
        secrets={CURRENT: sealed, PREVIOUS: webhook.secrets[CURRENT]},
    )


def previous_until(webhook: Subscription) -> int:
    """Until when the secret before signs, too, in microseconds; 0: there is none."""
    return int(webhook.sink.get(_UNTIL, 0))


def check_webhook(subscription: Subscription) -> Subscription:
    """The subscription, which must be a webhook. Raises NotFound (SUBSCRIPTION_NOT_FOUND)."""
    if subscription.kind is not SinkKind.WEBHOOK:
        raise no_subscription(subscription.subscription_id)
    return subscription
