"""HTTP to the servers of others: only to addresses that the operator's rules allow, and bounded in all that they send.

A name is resolved for each connection, all of its addresses are checked, and the sockets go to those and to no other.
Redirects are not followed, there is no proxy, no cookie is kept, and nothing of an answer's body is looked at.
"""

from __future__ import annotations

import asyncio
import io
import ipaddress
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from deskwire_common.targets import IpAddress, TargetRefused, Targets, plain
from deskwire_events.sinks.names import resolved

CONNECT_SECONDS: Final = 5.0
KEEP_SECONDS: Final = 20.0
"""How long a connection stays open for the next event."""
#: The rest of an answer, which is read so that its connection can be used again.
_REST_BYTES: Final = 64 << 10
_REST_SECONDS: Final = 2.0
_BUFFER: Final = 4 << 10
_LARGE_BODY: Final = 1 << 20


class Unreachable(Exception):
    """Nobody could be asked. `told` is what the tenant may hear, the message is the operator's."""

    def __init__(self, told: str, detail: str) -> None:
        super().__init__(detail)
        self.told = told


class Unanswered(Exception):
    """It was asked, and didn't answer: perhaps it has the request. The message may be shown."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The status of an answer, and its header Retry-After."""

    status: int
    retry_after: str


class _Refused(OSError):
    """No rule allows an address."""


NOT_THERE: Final = "no server answers there that this hub may call"
"""All that a tenant is told, whether a rule forbids the address or nothing answers."""


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Whom to trust: the system's authorities, and those of a PEM file. Reads files. Raises OSError, ssl.SSLError."""
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context


class Poster:
    """POSTs to one URL of a tenant's, `parallel` at a time, each of which may take `seconds`."""

    def __init__(
        self,
        tenant: str,
        url: URL,
        *,
        targets: Targets,
        tls: ssl.SSLContext,
        parallel: int,
        seconds: float,
    ) -> None:
        self._url = url
        self._guard = _Guard(tenant, url, targets)
        self._tls = tls
        self._parallel = parallel
        self._timeout = aiohttp.ClientTimeout(
            total=seconds, sock_connect=min(CONNECT_SECONDS, seconds)
        )
        self._seconds = seconds
        self._session: aiohttp.ClientSession | None = None

    async def post(self, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send one request. Raises Unreachable, Unanswered."""
        try:
            try:
                return await self._post(headers, body)
            except (aiohttp.ServerDisconnectedError, ConnectionResetError):
                # It may have closed a connection that was kept, in the moment in which it was used again.
                return await self._post(headers, body)
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise Unreachable(_told_of(error), str(error)) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unreachable(NOT_THERE, str(error.__cause__ or error)) from error
        except TimeoutError as error:
            raise Unanswered(f"no answer within {self._seconds:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            # Answers that are no HTTP, or whose head is too long, too.
            raise Unanswered("the connection broke, or what came is no HTTP") from error

    async def close(self) -> None:
        """End all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _post(self, headers: Mapping[str, str], body: bytes) -> Answer:
        # aiohttp sends bytes in one go, and warns of large ones.
        data: Any = body if len(body) < _LARGE_BODY else io.BytesIO(body)
        async with self._opened().post(
            self._url, data=data, headers=headers, allow_redirects=False
        ) as response:
            answer = Answer(response.status, response.headers.get("Retry-After", ""))
            await _read_rest(response)
            return answer

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._parallel,
                    resolver=self._guard,
                    use_dns_cache=False,
                    socket_factory=self._guard.socket,
                    ssl=self._tls,
                    keepalive_timeout=KEEP_SECONDS,
                ),
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept": "*/*", "Accept-Encoding": "identity"},
                auto_decompress=False,
                trust_env=False,
                read_bufsize=_BUFFER,
            )
        return self._session


class _Guard(AbstractResolver):
    """Resolves by the rules, and makes sockets to what they allowed only."""

    def __init__(self, tenant: str, url: URL, targets: Targets) -> None:
        self._tenant = tenant
        self._url = url
        self._targets = targets
        self._allowed: frozenset[IpAddress] = frozenset()

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - the rules choose
    ) -> list[ResolveResult]:
        """The addresses of the host, all of which are allowed. Raises OSError."""
        try:
            found = await resolved(self._targets, self._tenant, host, port)
        except TargetRefused as error:
            raise _Refused(str(error)) from error
        self._allowed = frozenset(found)
        return [
            {
                "hostname": host,
                "host": str(address),
                "port": port,
                "family": socket.AF_INET if address.version == 4 else socket.AF_INET6,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
            for address in found
        ]

    async def close(self) -> None:
        """Nothing to close."""

    def socket(self, info: Sequence[Any]) -> socket.socket:
        """The socket of a connection. Raises OSError for an address that no rule allows."""
        family, kind, protocol, _, address = info
        where = plain(ipaddress.ip_address(address[0]))
        if where not in self._allowed and not self._is_named(where):
            raise _Refused(f"{where} wasn't allowed for {self._url.host}")
        return socket.socket(family, kind, protocol)

    def _is_named(self, where: IpAddress) -> bool:
        """Whether the URL has the address itself, which nobody resolves, and a rule allows it."""
        with suppress(ValueError, TargetRefused):
            host = str(self._url.host)
            if plain(ipaddress.ip_address(host)) == where:
                return where in self._targets.addresses(host, int(self._url.port or 0))
        return False


async def _read_rest(response: aiohttp.ClientResponse) -> None:
    """Read a short body; a longer or slower one costs its connection."""
    left = _REST_BYTES
    try:
        async with asyncio.timeout(_REST_SECONDS):
            while left > 0 and (chunk := await response.content.readany()):
                left -= len(chunk)
    except (aiohttp.ClientError, OSError, TimeoutError):
        response.close()


def _told_of(error: aiohttp.ClientConnectorError) -> str:
    broken = error.__cause__
    if isinstance(broken, ssl.SSLCertVerificationError):
        return f"its certificate isn't trusted: {broken.verify_message}"
    return "it doesn't speak TLS as it should"
