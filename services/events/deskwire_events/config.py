"""Settings of the event hub."""

from __future__ import annotations

from pydantic import Field

from deskwire_common.config import DatabaseSettings, KafkaSettings, ServiceSettings


class Settings(DatabaseSettings, KafkaSettings, ServiceSettings):
    """From the environment, with the prefix DESKWIRE_."""

    #: So many dead letters in a row, without a success between them, stop an adapter.
    dead_letter_limit: int = Field(default=100, ge=1)
