"""What waits is joined per key, and waits again when it failed for now."""

from __future__ import annotations

import asyncio

from deskwire_common.backlog import Backlog
from support import eventually


async def test_work_is_joined_and_done_again_until_it_is_done() -> None:
    done: list[dict[str, int]] = []
    failures = [OSError("gone"), OSError("gone")]

    async def work(some: dict[str, int]) -> None:
        if failures:
            # What comes meanwhile isn't lost.
            backlog.add("a", 10)
            raise failures.pop()
        done.append(some)

    backlog = Backlog[str, int](
        work, join=lambda one, other: one + other, failed="failed", outlast=(OSError,), chunk=2
    )
    for key in ("a", "b", "a", "c"):
        backlog.add(key, 1)
    assert len(backlog) == 3
    running = asyncio.create_task(backlog.run())
    await eventually(lambda: len(done) == 2)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [len(each) for each in done] == [2, 1]
    assert {key: what for each in done for key, what in each.items()} == {"a": 22, "b": 1, "c": 1}
    assert len(backlog) == 0
