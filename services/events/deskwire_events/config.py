"""Settings of the event hub."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deskwire_common.config import DatabaseSettings, KafkaSettings, ServiceSettings, TargetRules


class Settings(DatabaseSettings, KafkaSettings, ServiceSettings):
    """From the environment, with the prefix DESKWIRE_."""

    dead_letter_limit: int = Field(default=100, ge=1)
    """Dead letters in a row, without a success between them, that stop an adapter."""
    kafka_group_protocol: Literal["consumer", "classic"] = "consumer"
    """`classic` for brokers without KIP-848: older than Kafka 4.0, and the development broker."""
    adapter_targets: TargetRules = "public:*"
    """Addresses that adapters may have: `HOST:PORT` rules with commas, see addresses.md."""
    max_adapters: int = Field(default=50, ge=1)
    """Adapters of one tenant."""
    max_registrations: int = Field(default=4, ge=1)
    """RegisterAdapter or CreateSource calls of one tenant that one process works on at a time."""
    max_subscriptions: int = Field(default=100, ge=1)
    """Open Subscribe streams of one tenant, of one process."""
