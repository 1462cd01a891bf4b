"""Signed URLs of the directory store: an HMAC (RFC 2104) over method, attachment and all parameters, with expiry."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode

from deskwire_common.auth import KeySet
from deskwire_common.clock import Clock

PATH: Final = "/attachments/"
_PURPOSE: Final = "attachment URLs"
_SIGNATURE: Final = "signature"
_EXPIRES: Final = "expires"


class Signatures:
    """Makes and checks the queries of signed URLs. All processes with the same keys file accept each other's."""

    def __init__(self, keys: KeySet, clock: Clock) -> None:
        self._keys = keys
        self._clock = clock

    def query(
        self, method: str, attachment_id: str, parameters: Mapping[str, str], *, seconds: int
    ) -> str:
        """Return a query that is valid for `seconds`. Raises KeysError without a private key."""
        expires = int(self._clock.now().timestamp()) + seconds
        query = {**parameters, _EXPIRES: str(expires)}
        query[_SIGNATURE] = _signature(
            self._keys.secrets(_PURPOSE)[0], method, attachment_id, query
        )
        return urlencode(query)

    def refusal(self, method: str, attachment_id: str, query: Mapping[str, str]) -> str:
        """Return "" for a URL that is validly signed and hasn't expired, else what the caller should do."""
        self._keys.refresh()
        given = query.get(_SIGNATURE, "").encode("utf-8", "surrogatepass")
        signed = {name: value for name, value in query.items() if name != _SIGNATURE}
        # Compare with all keys, so that the time doesn't tell which one matches.
        matches = [
            hmac.compare_digest(_signature(key, method, attachment_id, signed).encode(), given)
            for key in self._keys.secrets(_PURPOSE)
        ]
        if not any(matches):
            return "the URL isn't one that was signed here: take it as it came"
        if self._clock.now().timestamp() >= int(signed[_EXPIRES]):
            return "the URL has expired: ask for another one"
        return ""


class UrlSigner:
    """Makes signed URLs."""

    def __init__(self, base: str, signatures: Signatures) -> None:
        """`base` is the beginning of URLs as clients reach them: `https://files.example.com`."""
        self._base = base.rstrip("/")
        self._signatures = signatures

    def sign(
        self, method: str, attachment_id: str, parameters: Mapping[str, str], *, seconds: int
    ) -> str:
        """Return a URL that is valid for `seconds`. Raises KeysError without a private key."""
        query = self._signatures.query(method, attachment_id, parameters, seconds=seconds)
        return f"{self._base}{PATH}{attachment_id}?{query}"


def _signature(key: bytes, method: str, attachment_id: str, query: Mapping[str, str]) -> str:
    text = "\n".join((method, attachment_id, urlencode(sorted(query.items()))))
    return hmac.digest(key, text.encode("utf-8", "surrogatepass"), "sha256").hex()
