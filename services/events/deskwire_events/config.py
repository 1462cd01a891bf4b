"""Settings of the event hub."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deskwire_common.config import DatabaseSettings, KafkaSettings, ServiceSettings


class Settings(DatabaseSettings, KafkaSettings, ServiceSettings):
    """From the environment, with the prefix DESKWIRE_."""

    #: So many dead letters in a row, without a success between them, stop an adapter.
    dead_letter_limit: int = Field(default=100, ge=1)
    #: `classic` for brokers without KIP-848, such as the development broker.
    kafka_group_protocol: Literal["consumer", "classic"] = "consumer"
