"""What both ends of a connection agree on: sizes, keepalive, deadlines, certificates."""

from __future__ import annotations

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
