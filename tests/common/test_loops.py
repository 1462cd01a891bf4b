"""Loops: pauses grow and shrink, outages are outlasted, faults are not."""

from __future__ import annotations

import asyncio

import pytest

from deskwire_common.errors import Unavailable
from deskwire_common.loops import Backoff, every, wait


class Sleeps:
    """A sleep that takes no time, and ends the loop after some."""

    def __init__(self, count: int) -> None:
        self.taken: list[float] = []
        self._count = count

    async def __call__(self, seconds: float) -> None:
        if len(self.taken) == self._count:
            raise asyncio.CancelledError
        self.taken.append(seconds)


def longest(low: float, high: float) -> float:
    assert low == high / 2
    return high


async def test_pauses_double_up_to_the_longest_until_it_goes_well() -> None:
    sleeps = Sleeps(10)
    pauses = Backoff(0.5, 3.0, sleep=sleeps, uniform=longest)
    for _ in range(4):
        await pauses.pause()
    assert pauses.failures == 4
    pauses.reset()
    await pauses.pause(at_least=2.0)
    await pauses.pause()
    assert sleeps.taken == [0.5, 1.0, 2.0, 3.0, 2.0, 1.0]


def test_pauses_have_jitter_and_no_end() -> None:
    pauses = Backoff(0.1, 60.0)
    found = [pauses.next() for _ in range(2_000)]
    assert all(30.0 <= each <= 60.0 for each in found[10:])
    assert len(set(found)) > 1_900


async def test_a_loop_outlasts_outages() -> None:
    sleeps, rounds = Sleeps(3), 0

    async def work() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 2:
            raise Unavailable("the database doesn't answer")
        if rounds == 3:
            raise ConnectionResetError

    with pytest.raises(asyncio.CancelledError):
        await every(7.0, work, failed="not_done", sleep=sleeps)
    assert (rounds, sleeps.taken) == (4, [7.0, 7.0, 7.0])


async def test_a_loop_ends_with_a_fault() -> None:
    async def work() -> None:
        raise ZeroDivisionError

    sleeps = Sleeps(3)
    with pytest.raises(ZeroDivisionError):
        await every(7.0, work, failed="not_done", at_once=False, sleep=sleeps)
    assert sleeps.taken == [7.0]


async def test_who_wakes_a_loop_during_its_work_has_it_done_again() -> None:
    wake, rounds = asyncio.Event(), 0

    async def work() -> None:
        nonlocal rounds
        rounds += 1
        if rounds < 3:
            wake.set()
        else:
            done.set()

    done = asyncio.Event()
    loop = asyncio.create_task(every(3_600.0, work, failed="not_done", wake=wake))
    await asyncio.wait_for(done.wait(), 5)
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    assert rounds == 3


async def test_a_wait_says_whether_it_was_for_something() -> None:
    event = asyncio.Event()
    assert not await wait(event, 0.001)
    event.set()
    assert await wait(event, 3_600.0)
