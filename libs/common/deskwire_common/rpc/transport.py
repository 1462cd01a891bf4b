"""What both ends of a connection agree on: sizes, keepalive, deadlines, certificates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

#: Seconds that a call may take when its caller sets no deadline.
DEADLINE: Final = 10.0
#: Largest message in either direction.
MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024

# A ping every 20 s of silence is answered within 10 s, or the connection is dead; the server allows one per 10 s.
KEEPALIVE: Final = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
SIZES: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)


_LEAST_RECEIVED: Final = 1024 * 1024
_IDENTITY, _ALL_ENCODINGS = 0b001, 0b111  # bits of grpc.compression_enabled_algorithms_bitset
_HANDSHAKE_MS: Final = 10_000


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What the clients of one server may take of it.

    `connections` at a time, `streams`: calls at a time on one of them, `idle_seconds` after which a connection without
    a call is closed, also before its first. `compression`: whether requests may be compressed.
    """

    connections: int = 10_000
    streams: int = 1_000
    idle_seconds: float = 120.0
    compression: bool = False


def server_options(limits: ServerLimits, request_bytes: Iterable[int]) -> list[tuple[str, int]]:
    """The options of a server; `request_bytes`: the largest request of each of its methods.

    gRPC itself has one limit for all methods, and refuses what is over it without details. So it is twice the largest
    one, 1 to 4 MiB: up to there the answer names the method's limit.
    """
    received = min(MAX_MESSAGE_BYTES, max(_LEAST_RECEIVED, *(2 * each for each in request_bytes)))
    return [
        *KEEPALIVE,
        ("grpc.max_receive_message_length", received),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 5),
        ("grpc.max_concurrent_streams", limits.streams),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.max_connection_idle_ms", int(limits.idle_seconds * 1000)),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        # 4 KB of gzip are 4 MB of memory, before anybody knows who calls.
        (
            "grpc.compression_enabled_algorithms_bitset",
            _ALL_ENCODINGS if limits.compression else _IDENTITY,
        ),
    ]


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: this process's certificate and key, and who it trusts."""

    cert: Path
    key: Path
    ca: Path
    require_client_certificate: bool = False

    def server(self) -> grpc.ServerCredentials:
        """For listening."""
        return grpc.ssl_server_credentials(
            [(self.key.read_bytes(), self.cert.read_bytes())],
            root_certificates=self.ca.read_bytes(),
            require_client_auth=self.require_client_certificate,
        )

    def channel(self) -> grpc.ChannelCredentials:
        """For calling."""
        return grpc.ssl_channel_credentials(
            self.ca.read_bytes(), self.key.read_bytes(), self.cert.read_bytes()
        )
