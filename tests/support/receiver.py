"""A real HTTP server that receives webhooks, and certificates for it."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from standardwebhooks.webhooks import Webhook

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Got:
    """A request that came."""

    headers: dict[str, str]
    body: bytes
    peer: int
    """The port of its connection."""

    @property
    def event_id(self) -> str:
        """The id of the event."""
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """Answers with `status`, or as `respond` says. `got` is what came, `most` how many were open at the same time."""

    url: str = ""
    status: int = 204
    answer_headers: dict[str, str] = field(default_factory=dict)
    respond: Respond | None = None
    got: list[Got] = field(default_factory=list)
    open: int = 0
    most: int = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Note a request, and answer."""
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            peer = request.transport.get_extra_info("peername")[1] if request.transport else 0
            self.got.append(Got(lower(request.headers), await request.read(), peer))
            if self.respond is not None:
                return await self.respond(request)
            return web.Response(status=self.status, headers=self.answer_headers)
        finally:
            self.open -= 1

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.split(":")[2].split("/")[0])


def lower(headers: Any) -> dict[str, str]:
    """Headers by their names in lower case."""
    return {name.lower(): value for name, value in headers.items()}


def verify(secret: str, got: Got) -> Any:
    """The event of a request whose signature is right, as the library of Standard Webhooks says."""
    return Webhook(secret).verify(got.body, got.headers)


@asynccontextmanager
async def receiving(
    tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Receiver]:
    """Receive on a free port of this machine."""
    receiver = Receiver()
    app = web.Application(client_max_size=8 << 20)
    app.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        port = runner.addresses[0][1]
        receiver.url = f"{'https' if tls else 'http'}://{host}:{port}/hooks/deskwire"
        yield receiver
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw(answer: Callable[[Any, Any], Awaitable[None]]) -> AsyncIterator[str]:
    """A server whose bytes are `answer`'s to write, and the URL of it; its callers are cut off at the end."""
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await answer(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True)
class Certificates:
    """An authority of this test's, in a PEM file, and a server's context with a certificate for `name`."""

    ca_file: Path
    server: ssl.SSLContext


def certificates(folder: Path, name: str = "hooks.example.org") -> Certificates:
    """Make an authority and a certificate that it signed."""
    now = dt.datetime.now(dt.UTC)

    def certificate(
        subject: str, key: Any, issuer: str, signer: Any, *extensions: Any
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(subject))
            .issuer_name(_name(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(signer, hashes.SHA256())

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    constraints = (x509.BasicConstraints(ca=True, path_length=None), True)
    ca = certificate("test authority", ca_key, "test authority", ca_key, constraints)
    names = x509.SubjectAlternativeName(
        [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.9"))]
    )
    mine = certificate(name, key, "test authority", ca_key, (names, False))
    ca_file, chain = folder / "ca.pem", folder / "server.pem"
    ca_file.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    chain.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + mine.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain)
    return Certificates(ca_file, server)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
