"""kill -9 of every part of the message path, in loops under load; checked by everything that was promised.

The relay that takes committed messages to Kafka is a part of chat, and dies with it.
"""

from __future__ import annotations

import pytest

from support.history import Crowd
from support.world import World

pytestmark = pytest.mark.timeout(3_600)


@pytest.mark.parametrize("part", ["chat", "gateway", "postgres", "kafka", "valkey"])
async def test_kill_9_in_a_loop(world: World, rounds: int, part: str) -> None:
    crowd = Crowd(world)
    async with crowd.talking():
        for _ in range(rounds):
            await crowd.goes_on()
            await world.kill(part)
        await crowd.goes_on()


async def test_kill_9_of_a_gateway_worker_in_a_loop(world: World, rounds: int) -> None:
    crowd = Crowd(world)
    async with crowd.talking():
        for _ in range(rounds):
            await crowd.goes_on()
            await world.kill_worker()
        await crowd.goes_on()
