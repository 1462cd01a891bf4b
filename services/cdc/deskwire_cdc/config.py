"""Settings of change capture."""

from __future__ import annotations

from pathlib import Path

from deskwire_common.config import Address, DatabaseSettings, KafkaSettings, ServiceSettings


class Settings(DatabaseSettings, KafkaSettings, ServiceSettings):
    """From the environment, with the prefix DESKWIRE_."""

    chat_target: Address = "127.0.0.1:7402"
    """host:port of chat, to which customers are written."""
    sqlite_root: Path = Path("/")
    """Directory under which SQLite sources must lie; the default allows every file of this machine."""
