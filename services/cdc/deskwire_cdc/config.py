"""Settings of change capture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from deskwire_common.config import (
    Address,
    DatabaseSettings,
    KafkaSettings,
    ServiceSettings,
    TargetRules,
)


def _folders(text: str) -> str:
    for part in text.split(os.pathsep):
        if part and not Path(part).is_absolute():
            raise ValueError(f"{part!r} is no absolute path")
    return text


class Settings(DatabaseSettings, KafkaSettings, ServiceSettings):
    """From the environment, with the prefix DESKWIRE_."""

    chat_target: Address = "127.0.0.1:7402"
    """host:port of chat, to which customers are written."""
    sqlite_root: Annotated[str, AfterValidator(_folders)] = ""
    """Folders, with colons between them, in which SQLite sources must lie; empty: there are no SQLite sources."""
    source_targets: TargetRules = "public:*"
    """Addresses that the databases of other sources may have: `HOST:PORT` rules with commas, see addresses.md."""
    max_sources: int = Field(default=20, ge=1)
    """Sources of one tenant."""
    max_tables: int = Field(default=200, ge=1)
    """Captured tables of one tenant, of all its sources together."""
    max_registrations: int = Field(default=4, ge=1)
    """RegisterAdapter or CreateSource calls of one tenant that one process works on at a time."""

    @property
    def sqlite_roots(self) -> tuple[Path, ...]:
        """`sqlite_root` as paths."""
        return tuple(Path(part) for part in self.sqlite_root.split(os.pathsep) if part)
