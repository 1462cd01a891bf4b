"""What the gateway's tests start."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from deskwire_common.auth import TokenSigner
from support.suite import Desk, Start, desk


@pytest.fixture
def start(tmp_path: Path, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner) -> Start:
    """`async with start(ping_interval=1.0) as d`: a desk whose gateway has these settings."""
    url = f"sqlite:///{tmp_path / 'chat.db'}"

    @asynccontextmanager
    async def started(**settings: Any) -> AsyncIterator[Desk]:
        async with desk(url, kafka, valkey, keys_file, signer, **settings) as found:
            yield found

    return started
