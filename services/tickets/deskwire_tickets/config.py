"""Settings of the ticket service."""

from __future__ import annotations

from deskwire_common.config import Address, DatabaseSettings, KafkaSettings, ServiceSettings


class Settings(DatabaseSettings, KafkaSettings, ServiceSettings):
    """From the environment, with the prefix DESKWIRE_."""

    chat_target: Address = "127.0.0.1:7402"
    """host:port of chat, from which conversations are read."""
