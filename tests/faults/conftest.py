"""What is killed, and how often."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from support.world import World, a_world


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
    with a_world() as found:
        yield found
