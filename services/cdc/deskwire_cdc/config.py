"""Settings of change capture."""

from __future__ import annotations

from pathlib import Path

from deskwire_common.config import Address, DatabaseSettings, KafkaSettings, ServiceSettings


class Settings(DatabaseSettings, KafkaSettings, ServiceSettings):
    """From the environment, with the prefix DESKWIRE_."""

    #: Where chat is: customers are written to it.
    chat_target: Address = "127.0.0.1:7402"
    #: SQLite sources must lie under this directory; the default allows every file of this machine.
    sqlite_root: Path = Path("/")
