"""Locks: one has it, the next one waits, and who ends gives it back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from deskwire_common.db import Database
from deskwire_common.errors import FailedPrecondition
from deskwire_common.locks import locked


@pytest.fixture
async def pair(database_url: str) -> AsyncIterator[tuple[Database, Database]]:
    """Two processes' views of one database."""
    one, other = await Database.open(database_url), await Database.open(database_url)
    yield one, other
    await one.close()
    await other.close()


async def test_one_has_it_until_it_gives_it_back(pair: tuple[Database, Database]) -> None:
    one, other = pair
    async with locked(one, "migrate"):
        for db in pair:
            with pytest.raises(FailedPrecondition, match="migrate"):
                async with locked(db, "migrate", wait=False):
                    pass
        async with locked(other, "another", wait=False):
            pass
    async with locked(other, "migrate", wait=False):
        pass


async def test_who_waits_has_it_next_also_after_a_failure(pair: tuple[Database, Database]) -> None:
    one, other = pair
    order: list[str] = []

    async def follow() -> None:
        async with locked(other, "migrate", poll=0.02):
            order.append("other")

    async def fail() -> None:
        async with locked(one, "migrate"):
            waiting.append(asyncio.create_task(follow()))
            with pytest.raises(FailedPrecondition):
                async with locked(other, "migrate", wait=False):
                    pass
            order.append("one")
            raise ZeroDivisionError

    waiting: list[asyncio.Task[None]] = []
    with pytest.raises(ZeroDivisionError):
        await fail()
    async with asyncio.timeout(10):
        await waiting[0]
    assert order == ["one", "other"]
