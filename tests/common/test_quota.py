"""What a tenant may take: counted, in turns, and in threads of its own share."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack

import pytest

from deskwire_common.errors import ResourceExhausted
from deskwire_common.quota import Quota, Threads, Turns


def test_a_tenant_and_a_process_have_so_many() -> None:
    shown: list[int] = []
    quota = Quota(2, 3, show=shown.append)
    with ExitStack() as stack:
        for tenant in ("a", "a", "b"):
            stack.enter_context(quota.taken(tenant, "streams"))
        with pytest.raises(ResourceExhausted) as refused, quota.taken("a", "streams"):
            pass
        assert (refused.value.reason_name, refused.value.message) == (
            "RATE_LIMITED",
            "a tenant may have 2 streams",
        )
        with pytest.raises(ResourceExhausted) as refused, quota.taken("b", "streams"):
            pass
        assert refused.value.reason_name == "OVERLOADED"
        assert refused.value.retry_after
    assert shown == [1, 2, 3, 2, 1, 0]
    with quota.taken("a", "streams"):
        pass


async def test_slow_work_of_one_tenant_holds_up_no_other() -> None:
    threads = Threads("test", 4, per_tenant=2)
    answered, begun = threading.Event(), threading.Semaphore(0)

    def slow() -> int:
        begun.release()
        answered.wait(30)
        return 1

    waiting = [asyncio.create_task(threads.run("slow", slow)) for _ in range(10)]
    try:
        await asyncio.to_thread(begun.acquire)
        # Whoever stops waiting doesn't free the thread.
        waiting[0].cancel()
        async with asyncio.timeout(20):
            assert await threads.run("other", lambda: 7) == 7
        assert not any(task.done() for task in waiting[1:])
    finally:
        answered.set()
    assert await asyncio.gather(*waiting[1:]) == [1] * 9
    with pytest.raises(ZeroDivisionError):
        await threads.run("slow", lambda: 1 // 0)


async def test_turns_are_a_tenants_own() -> None:
    turns = Turns()
    async with turns.of("a"):
        assert turns.of("a").locked()
        async with turns.of("b"):
            pass
    assert not turns.of("a").locked()
