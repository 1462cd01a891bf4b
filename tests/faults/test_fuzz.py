"""A short run of `make fuzz`, which says a million frames."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from support.world import World

FRAMES = 20_000


@pytest.mark.timeout(300)
async def test_frames_that_nobody_should_send(world: World) -> None:
    spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).with_name("fuzz.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    answers = await module.fuzz(world, FRAMES, seed=1)
    assert sum(answers.values()) > FRAMES / 10
