"""What is killed, and how often."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.world import World


@pytest.fixture(scope="session")
def rounds() -> int:
    """How often each part is killed in its loop: 3 in CI, as many as `make soak` says there."""
    return int(os.environ.get("DESKWIRE_FAULT_ROUNDS", "3"))


@pytest.fixture(scope="session")
def outage() -> float:
    """How long a part is away, in seconds: 5 in CI, 60 in `make soak`."""
    return float(os.environ.get("DESKWIRE_FAULT_OUTAGE", "5"))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """A message path of this module's own, for it doesn't stay whole."""
    with tempfile.TemporaryDirectory(prefix="deskwire-world-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # databases run as users of their own
        found = World(folder)
        try:
            asyncio.run(found.start())
            yield found
        finally:
            found.stop()
