"""Settings of the event hub."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deskwire_common.config import DatabaseSettings, KafkaSettings, ServiceSettings


class Settings(DatabaseSettings, KafkaSettings, ServiceSettings):
    """From the environment, with the prefix DESKWIRE_."""

    dead_letter_limit: int = Field(default=100, ge=1)
    """Dead letters in a row, without a success between them, that stop an adapter."""
    kafka_group_protocol: Literal["consumer", "classic"] = "consumer"
    """`classic` for brokers without KIP-848: older than Kafka 4.0, and the development broker."""
