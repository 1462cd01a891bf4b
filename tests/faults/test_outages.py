"""Parts of the message path that are away for a while: what goes on, what is refused, and that nothing is lost."""

from __future__ import annotations

import asyncio
import re
import urllib.request

import pytest
from redis.asyncio import Redis

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire_common.auth import Role
from support import eventually
from support.history import Crowd
from support.suite import new_id
from support.wire import wire
from support.world import World

pytestmark = pytest.mark.timeout(600)


async def behind(world: World) -> float:
    """How many committed messages aren't on Kafka, as chat's metrics say."""
    text = await asyncio.to_thread(
        lambda: urllib.request.urlopen(f"http://{world.metrics}/metrics").read().decode()
    )
    total = {
        name: sum(
            map(float, re.findall(rf"^deskwire_partition_{name}{{.*}} (\S+)$", text, re.MULTILINE))
        )
        for name in ("head", "published")
    }
    return total["head"] - total["published"]


async def test_chat_goes_on_without_kafka_and_everything_arrives_later(
    world: World, outage: float
) -> None:
    crowd = Crowd(world)
    async with crowd.talking():
        await crowd.goes_on()
        await world.parts["kafka"].kill()
        ends = asyncio.get_running_loop().time() + outage
        while asyncio.get_running_loop().time() < ends:
            await crowd.goes_on()
        assert await behind(world) > 50
        await world.parts["kafka"].start()

        async def caught_up() -> bool:
            return await behind(world) < 50

        await eventually(caught_up, timeout=90, interval=0.2)


async def test_sends_are_refused_for_now_without_the_database(world: World, outage: float) -> None:
    crowd = Crowd(world)
    async with crowd.talking():
        await crowd.goes_on()
        async with wire(world, world.token(Role.VISITOR, "raw")) as visitor:
            conversation = new_id()
            await visitor.send(conversation, "one", "m-1")
            assert (await visitor.hear("send_ack")).seq == 1
            await world.parts["postgres"].kill()
            await visitor.send(conversation, "two", "m-2")
            refused: frame_pb2.Error = await visitor.hear("error")
            assert refused.client_msg_id == "m-2"
            assert refused.temporary
            assert refused.retry_after.ToMilliseconds() > 0
            # Nothing overtakes it.
            await visitor.send(conversation, "three", "m-3")
            held: frame_pb2.Error = await visitor.hear("error")
            assert (held.client_msg_id, held.reason) == ("m-3", reasons.ERROR_REASON_LINE_HELD)
            await asyncio.sleep(outage)
            await world.parts["postgres"].start()
            last = 1
            for number in (2, 3):
                while True:
                    await visitor.send(
                        conversation, "two" if number == 2 else "three", f"m-{number}"
                    )
                    answer = await visitor.hear_one_of("send_ack", "error")
                    if isinstance(answer, frame_pb2.SendAck):
                        # The greeting of an agent of the crowd may have come between.
                        assert last < answer.seq <= number + 1
                        last = answer.seq
                        break
                    assert answer.temporary
        await crowd.goes_on()


async def test_chat_goes_on_without_the_session_directory(
    world: World, rounds: int, outage: float
) -> None:
    crowd = Crowd(world)
    async with crowd.talking():
        await crowd.goes_on()
        async with Redis.from_url(world.valkey) as redis:
            for _ in range(rounds):
                await redis.flushall()
                await crowd.goes_on()
        await world.parts["valkey"].kill()
        ends = asyncio.get_running_loop().time() + outage
        while asyncio.get_running_loop().time() < ends:
            await crowd.goes_on()
        await world.parts["valkey"].start()
        await crowd.goes_on()
