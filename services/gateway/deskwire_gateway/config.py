"""Settings of the gateway."""

from __future__ import annotations

from pydantic import Field, field_validator

from deskwire_common.config import Address, ServiceSettings, split_address
from deskwire_wire.limits import MAX_MESSAGE_BYTES


class Settings(ServiceSettings):
    """Intervals in seconds, sizes in bytes, rates per second and connection."""

    ws_listen: Address = "127.0.0.1:7400"
    """host:port of the WebSocket side."""
    chat_target: Address = "127.0.0.1:7402"
    """host:port of a chat process; the others are learned from it."""
    redis_url: str
    """`redis://host:port/0`, `rediss://…` or `unix:///path`: the session directory and the rate limits."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that share its ports (`SO_REUSEPORT`); each has the limits below for itself."""
    worker: int | None = None
    """Which of the workers this process is; set by the one that starts them."""
    max_connections: int = Field(default=18_000, ge=1)
    """WebSockets and Connect streams of one process; fewer where its limit of file descriptors is lower."""
    max_tenant_connections: int = Field(default=0, ge=0)
    """Sessions of one tenant in one process, also those that may be resumed; 0: no limit."""
    ping_interval: float = Field(default=25.0, ge=0.1, le=600)
    """Seconds between heartbeats of agents and bots; three intervals without a sign of life end a connection."""
    visitor_ping_interval: float = Field(default=50.0, ge=0.1, le=600)
    """The same of visitors, who are many; below the minute after which proxies give a quiet connection up."""
    hello_timeout: float = Field(default=10.0, ge=0.1, le=60)
    """Seconds until Hello must have come."""
    max_message_bytes: int = Field(default=MAX_MESSAGE_BYTES, ge=1_024, le=1_048_576)
    """Largest message from a client. With less than the default, 8,000 characters don't fit in every script."""
    max_unacked_sends: int = Field(default=64, ge=1, le=1_024)
    """Sends of one connection that have no answer yet."""
    max_calls: int = Field(default=8, ge=1, le=256)
    """Rpc frames of one connection that have no result yet."""
    max_result_bytes: int = Field(default=262_144, ge=16_384, le=3_145_728)
    """Largest response of an Rpc; `max_buffered_bytes` should have room for several."""
    max_pending_sends: int = Field(default=100_000, ge=1)
    """Sends of all connections that have no answer yet."""
    send_rate: float = Field(default=200.0, gt=0)
    """Sends a second of one connection; an Rpc counts four, a Sync two, other frames a quarter."""
    send_burst: int = Field(default=400, ge=1)
    """Sends of one connection that may come at once."""
    tenant_send_rate: float = Field(default=0.0, ge=0)
    """Sends a second of all connections of a tenant to one process, with a burst of two seconds' worth; 0: no limit."""
    accept_rate: float = Field(default=0.0, ge=0)
    """New WebSockets a second of one process; others get HTTP 503 with Retry-After; 0: no limit."""
    max_buffered_bytes: int = Field(default=1_048_576, ge=65_536)
    """Bytes that wait for a connection which reads slower than it is sent to; beyond them it is closed."""
    backoff_initial: float = Field(default=0.2, ge=0.01, le=60)
    """Seconds that clients wait at first before they come back after a break."""
    backoff_max: float = Field(default=10.0, ge=0.1, le=600)
    """Seconds that clients wait at the most before they come back."""
    resume_window: float = Field(default=30.0, ge=0, le=600)
    """Seconds that a session waits for its client after a break; 0: no sessions are resumed."""
    ring_bytes: int = Field(default=65_536, ge=1_024, le=1_048_576)
    """Bytes that are kept for one session, to resume it without loss."""
    ring_total_bytes: int = Field(default=134_217_728, ge=1_024)
    """Bytes that are kept for all sessions of one process."""

    @property
    def listens(self) -> tuple[str, ...]:
        """gRPC only: TLS for WebSocket ends at the ingress, which costs 32 KiB a connection in process."""
        return (self.grpc_listen,)

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, text: str) -> str:
        if not text.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("use redis://host:port, rediss://host:port or unix:///path")
        return text

    @property
    def ws_address(self) -> tuple[str, int]:
        """Host and port of the WebSocket side."""
        return split_address(self.ws_listen)
