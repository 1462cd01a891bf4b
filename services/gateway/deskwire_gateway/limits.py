"""What a connection may do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, bytes and messages per second; the settings of the same names describe them."""

    max_connections: int
    max_tenant_connections: int
    ping_interval: float
    visitor_ping_interval: float
    hello_timeout: float
    max_message_bytes: int
    max_unacked_sends: int
    max_calls: int
    max_pending_sends: int
    send_rate: float
    send_burst: int
    tenant_send_rate: float
    backoff_initial: float
    backoff_max: float
    resume_window: float
    ring_bytes: int
    ring_total_bytes: int
