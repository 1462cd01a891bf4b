"""What the gateway is told."""

from __future__ import annotations

from pydantic import Field, field_validator

from deskwire_common.config import Address, ServiceSettings, split_address


class Settings(ServiceSettings):
    """Intervals in seconds, sizes in bytes, rates per second and connection."""

    ws_listen: Address = "127.0.0.1:7400"
    chat_target: Address = "127.0.0.1:7402"
    redis_url: str
    """`redis://host:port/0`, `rediss://…` or `unix:///path`: the session directory."""
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that share the ports; each has the limits below for itself."""
    worker: int | None = None
    """Which of them this process is: set by the one that starts them."""
    max_connections: int = Field(default=18_000, ge=1)
    """Of one process; less where its descriptor limit is lower."""
    ping_interval: float = Field(default=25.0, ge=0.1, le=600)
    visitor_ping_interval: float = Field(default=50.0, ge=0.1, le=600)
    hello_timeout: float = Field(default=10.0, ge=0.1, le=60)
    max_message_bytes: int = Field(default=16_384, ge=1_024, le=1_048_576)
    max_unacked_sends: int = Field(default=64, ge=1, le=1_024)
    max_calls: int = Field(default=8, ge=1, le=256)
    """Rpc frames of one connection that are without their result."""
    max_result_bytes: int = Field(default=262_144, ge=16_384, le=4_194_304)
    """Of one call; max_buffered_bytes should have room for several."""
    max_pending_sends: int = Field(default=100_000, ge=1)
    send_rate: float = Field(default=200.0, gt=0)
    send_burst: int = Field(default=400, ge=1)
    tenant_send_rate: float = Field(default=0.0, ge=0)
    """Of all connections of a tenant to one process; 0: no limit."""
    accept_rate: float = Field(default=0.0, ge=0)
    """New WebSockets a second of one process; 0: no limit."""
    max_buffered_bytes: int = Field(default=1_048_576, ge=65_536)
    """Of one connection that reads slower than it is sent to; then it is closed."""
    backoff_initial: float = Field(default=0.2, ge=0.01, le=60)
    backoff_max: float = Field(default=10.0, ge=0.1, le=600)
    """Clients wait between these before they come back after a break."""
    resume_window: float = Field(default=30.0, ge=0, le=600)
    """How long a session waits for its client after a break; 0: no sessions are resumed."""
    ring_bytes: int = Field(default=65_536, ge=1_024)
    """What is kept for one session to be resumed without loss."""
    ring_total_bytes: int = Field(default=134_217_728, ge=1_024)
    """What is kept for all sessions of one process."""

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
