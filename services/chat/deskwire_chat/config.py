"""What chat is told."""

from __future__ import annotations

import socket

from pydantic import Field

from deskwire_common.config import DatabaseSettings, KafkaSettings, ServiceSettings


class Settings(DatabaseSettings, KafkaSettings, ServiceSettings):
    """`shard_name` is the place of this process (its pod): its next life takes its partitions over at once."""

    shard_name: str = Field(default_factory=socket.gethostname, min_length=1, max_length=64)
    max_streams: int = Field(default=5_000, ge=1)
    """StreamMessages and WatchConversation calls that may be open in this process."""
    max_tenant_streams: int = Field(default=1_000, ge=1)
    default_region: str = Field(default="", pattern="^([A-Z]{2})?$")
    """How mobile numbers without a leading + are read: `CN`, `DE` …; empty: they stay as given."""
