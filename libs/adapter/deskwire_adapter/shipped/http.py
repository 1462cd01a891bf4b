"""HTTP to addresses that the operator's rules allow: checked after they are resolved, dialled as checked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from deskwire_adapter.base import CredentialsRefused
from deskwire_common.targets import TargetRefused, Targets

SECONDS: Final = 10.0
MAX_ANSWER: Final = 1 << 20
_LONGEST_WAIT: Final = 3_600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whose body was read up to MAX_ANSWER bytes."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asks for, as a number or a date (RFC 9110)."""
        text = self.headers.get("Retry-After", "")
        if text.isdigit():
            return min(float(text), _LONGEST_WAIT)
        try:
            when = parsedate_to_datetime(text)
        except (TypeError, ValueError):
            return None
        if when.tzinfo is None:
            return None
        return min(max(0.0, (when - datetime.now(UTC)).total_seconds()), _LONGEST_WAIT)


class _Checked(AbstractResolver):
    """Names as the rules allow them."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        try:
            found = await asyncio.to_thread(self._targets.addresses, host, port)
        except TargetRefused as error:
            raise OSError("no rule allows this address") from error
        families = {4: socket.AF_INET, 6: socket.AF_INET6}
        return [
            ResolveResult(
                hostname=host,
                host=str(each),
                port=port,
                family=families[each.version],
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for each in found
            if family in {socket.AF_UNSPEC, families[each.version]}
        ]

    async def close(self) -> None:
        """Nothing is held."""


class Http:
    """One system's HTTP: its cookies, few connections, no redirects, no proxy of the environment."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_Checked(targets), use_dns_cache=False, limit=4
            ),
            # SAP's CSRF tokens belong to the cookies that came with them; test systems have addresses for names.
            cookie_jar=aiohttp.CookieJar(unsafe=True),
            timeout=aiohttp.ClientTimeout(total=SECONDS),
            trust_env=False,
        )

    async def call(
        self, method: str, url: URL, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> Answer:
        """Call. Raises TimeoutError, aiohttp.ClientError and OSError."""
        # aiohttp asks no resolver about what is an address already.
        if url.host is not None and _is_address(url.host):
            try:
                self._targets.addresses(url.host, url.port or 0)
            except TargetRefused as error:
                raise OSError("no rule allows this address") from error
        async with self._session.request(
            method, url, headers=headers, allow_redirects=False, **more
        ) as answer:
            body = bytearray()
            async for chunk in answer.content.iter_chunked(65_536):
                body += chunk
                if len(body) >= MAX_ANSWER:
                    break
            return Answer(answer.status, answer.headers, bytes(body))

    async def close(self) -> None:
        """End its connections."""
        await self._session.close()


def web_url(text: str, name: str) -> URL:
    """An http or https URL of a configuration. Raises CredentialsRefused."""
    try:
        url = URL(text)
        port = url.port
    except ValueError as error:
        raise CredentialsRefused(f"{name} is no URL") from error
    if url.scheme not in {"http", "https"} or not url.host or port is None:
        raise CredentialsRefused(f"{name} is no http:// or https:// URL")
    if url.user or url.password or url.query_string or url.fragment:
        raise CredentialsRefused(f"{name} may have no user, no query and no fragment")
    return url


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()
