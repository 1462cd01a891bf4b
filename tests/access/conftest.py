"""Chat and gateway with a desk of their own, and ways to manage it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deskwire_common.auth import TokenSigner
from support.access import Access
from support.suite import desk


@pytest.fixture
async def access(
    kafka: str, valkey: str, keys_file: Path, signer: TokenSigner, tmp_path: Path
) -> AsyncIterator[Access]:
    """On SQLite."""
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    async with desk(url, kafka, valkey, keys_file, signer) as d:
        yield Access(d, url, kafka)


@pytest.fixture
async def everywhere(
    database_url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> AsyncIterator[Any]:
    """On every database, one after another."""
    async with desk(database_url, kafka, valkey, keys_file, signer) as d:
        yield Access(d, database_url, kafka)
