"""Turns: work of many users, a few at a time, and nobody waits behind somebody else's flood."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest

from deskwire_chat.live.turns import (
    AT_ONCE,
    PER_LINE,
    PER_TENANT,
    TOGETHER,
    WHILE_RESTING,
    Turns,
)
from support import eventually


class Desk:
    """Work that is under way until it is told to end."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.begun: list[str] = []
        self.open: dict[str, asyncio.Future[float]] = {}

    def ask(self, tenant: str, line: str, name: str) -> bool:
        return self.turns.ask(tenant, line, partial(self._work, name))

    async def _work(self, name: str) -> float:
        self.begun.append(name)
        self.open[name] = asyncio.get_running_loop().create_future()
        try:
            return await self.open[name]
        finally:
            del self.open[name]

    async def begins(self, *names: str) -> None:
        await eventually(lambda: set(names) <= set(self.begun))

    async def end(self, name: str, rest: float = 0.0) -> None:
        self.open[name].set_result(rest)
        await eventually(lambda: name not in self.open)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    yield desk
    desk.turns.cancel()
    await quiet()


async def quiet(times: int = 10) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def test_one_of_a_user_at_a_time_in_order(desk: Desk) -> None:
    for number in range(3):
        assert desk.ask("t", "ann", f"{number}")
    for number in range(3):
        await desk.begins(f"{number}")
        await quiet()
        assert desk.begun == [f"{each}" for each in range(number + 1)]
        await desk.end(f"{number}")
    assert desk.turns.is_idle("t", "ann")


async def test_a_tenant_leaves_a_place_for_others(desk: Desk) -> None:
    for number in range(20):
        assert desk.ask("flood", f"{number}", f"flood {number}")
    await quiet()
    assert len(desk.begun) == PER_TENANT < AT_ONCE
    assert desk.ask("other", "bob", "other")
    await desk.begins("other")
    assert len(desk.open) == AT_ONCE


async def test_tenants_take_turns_whatever_waits(desk: Desk) -> None:
    for number in range(200):
        assert desk.ask("flood", f"{number}", f"flood {number}")
    for number in range(5):
        assert desk.ask("other", f"{number}", f"other {number}")
    for _ in range(12):
        await quiet()
        await desk.end(next(iter(desk.open)))
    await quiet()
    assert {f"other {number}" for number in range(5)} <= set(desk.begun)


async def test_a_user_rests_after_what_was_in_vain_and_nobody_else_does(desk: Desk) -> None:
    assert desk.ask("t", "eve", "in vain")
    assert desk.ask("t", "eve", "next")
    await desk.begins("in vain")
    await desk.end("in vain", rest=3_600)
    assert desk.ask("t", "bob", "another's")
    await desk.begins("another's")
    await quiet()
    assert "next" not in desk.begun
    assert not desk.turns.is_idle("t", "eve")
    # Little more is taken of who rests.
    assert [desk.ask("t", "eve", "more") for _ in range(PER_LINE)].count(True) == WHILE_RESTING - 1


async def test_a_rest_is_over(desk: Desk) -> None:
    assert desk.ask("t", "eve", "in vain")
    assert desk.ask("t", "eve", "next")
    await desk.begins("in vain")
    await desk.end("in vain", rest=0.01)
    await desk.begins("next")
    await desk.end("next", rest=0.01)
    await eventually(lambda: desk.turns.is_idle("t", "eve"))


async def test_what_waits_is_bounded_for_a_user_and_for_all_but_fairly(desk: Desk) -> None:
    assert [desk.ask("t", "ann", "x") for _ in range(PER_LINE + 2)].count(False) == 1
    lines = TOGETHER // PER_LINE + 1
    flood = [desk.ask("flood", f"{line}", "x") for line in range(lines) for _ in range(PER_LINE)]
    assert False in flood
    assert not desk.ask("flood", "one more", "x")
    assert desk.ask("new", "bob", "x")
    # What has to be told, as Heads, is.
    assert desk.turns.ask("flood", "heads", partial(desk._work, "heads"), always=True)


async def test_work_that_fails_ends_only_itself(desk: Desk) -> None:
    async def fails() -> float:
        raise ValueError("a fault")

    assert desk.turns.ask("t", "ann", fails)
    assert desk.ask("t", "ann", "next")
    await desk.begins("next")


async def test_nothing_is_left_after_a_cancel(desk: Desk) -> None:
    for number in range(20):
        assert desk.ask(f"t{number % 2}", f"{number}", f"{number}")
    await quiet()
    desk.turns.cancel()
    await eventually(lambda: not desk.open)
    await quiet()
    assert len(desk.begun) == AT_ONCE
