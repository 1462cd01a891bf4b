"""The gRPC server around an adapter."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import grpc

from deskwire.adapters.v1 import system_adapter_service_pb2_grpc
from deskwire_adapter.base import AdapterBase
from deskwire_adapter.service import AdapterService
from deskwire_adapter.watch import Watch

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""What the hub sends at the most, and takes."""
_GRACE: Final = 2.0
_OPTIONS: Final = (
    # One port, one server: by default a second one on the same port starts without an error.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # The hub asks every 20 s whether a silent connection is still there.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # 4 KB of gzip are 4 MB of memory.
    ("grpc.compression_enabled_algorithms_bitset", 1),
)


def _credentials(key: Path, cert: Path) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])


@asynccontextmanager
async def serving(
    adapter: AdapterBase,
    listen: str,
    *,
    cert: str | Path | None = None,
    key: str | Path | None = None,
    watch: Watch | None = None,
) -> AsyncIterator[int]:
    """Serve `adapter` on `listen` (host:port, port 0: any; or unix:PATH) while the block runs; yields the port.

    `cert` and `key` are PEM files for TLS; without them it is plaintext, for loopback only. Raises OSError.
    """
    server = grpc.aio.server(options=_OPTIONS)
    service = AdapterService(adapter, watch)
    system_adapter_service_pb2_grpc.add_SystemAdapterServiceServicer_to_server(service, server)
    try:
        if cert is None or key is None:
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, _credentials(Path(key), Path(cert)))
    except RuntimeError:
        port = 0
    if not port:
        raise OSError(f"can't listen on {listen}")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(_GRACE)
        await service.close()


async def _until_told(
    adapter: AdapterBase, listen: str, cert: str | Path | None, key: str | Path | None
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(adapter, listen, cert=cert, key=key) as port:
        print(f"{adapter.program or type(adapter).__name__} serves on port {port}", file=sys.stderr)
        await stop.wait()


def serve(
    adapter: AdapterBase,
    listen: str,
    *,
    cert: str | Path | None = None,
    key: str | Path | None = None,
) -> None:
    """Serve `adapter` on `listen` (host:port) until SIGTERM or Ctrl-C; see `serving`. Blocks. Raises OSError."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(_until_told(adapter, listen, cert, key))
