"""What chat is told."""

from __future__ import annotations

import socket

from pydantic import Field

from deskwire_common.config import (
    DatabaseSettings,
    KafkaSettings,
    OptionalAddress,
    ServiceSettings,
    is_wildcard,
    split_address,
)


class Settings(DatabaseSettings, KafkaSettings, ServiceSettings):
    """`shard_name` is the place of this process (its pod): its next life takes its partitions over at once."""

    shard_name: str = Field(default_factory=socket.gethostname, min_length=1, max_length=64)
    max_streams: int = Field(default=5_000, ge=1)
    """StreamMessages and WatchConversation calls that may be open in this process."""
    max_tenant_streams: int = Field(default=1_000, ge=1)
    advertise: OptionalAddress = ""
    """host:port at which gateways and other chat processes reach this one; "": where it listens."""
    lease_seconds: float = Field(default=15.0, ge=1, le=300)
    """So long after its last sign of life a process's partitions are another's to take."""
    peer_name: str = ""
    """With TLS: the name in the certificates of other chat processes, where it isn't the host of their address."""
    bot_away_seconds: float = Field(default=10.0, gt=0, le=3_600)
    """So long a bot may be without an open connection before its conversations go back to the queue."""
    offer_seconds: float = Field(default=0.0, ge=0, le=600)
    """So long a conversation is offered to an agent; 0: it is theirs at once."""
    default_region: str = Field(default="", pattern="^([A-Z]{2})?$")
    """How mobile numbers without a leading + are read: `CN`, `DE` …; empty: they stay as given."""

    def address(self, port: int) -> str:
        """Where others reach this process, which listens on `port`."""
        host, given = split_address(self.advertise or self.grpc_listen)
        if self.advertise:
            port = given
        elif is_wildcard(host):
            host = socket.gethostname()
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
