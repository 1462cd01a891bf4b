"""Helpers that the tests of several services share; the servers are in `support.servers`."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def eventually(
    check: Callable[[], T | Awaitable[T]], *, timeout: float = 10.0, interval: float = 0.02
) -> T:
    """Call `check` until its result is true, and return the result; use this instead of a sleep.

    An AssertionError in `check` means "not yet". After `timeout` seconds the last one is raised, or one that shows
    the last result.
    """
    deadline = time.monotonic() + timeout
    while True:
        failure: AssertionError | None = None
        answer: Any = None
        try:
            answer = check()
            if inspect.isawaitable(answer):
                answer = await answer
            if answer:
                return answer  # type: ignore[no-any-return]
        except AssertionError as error:
            failure = error
        if time.monotonic() > deadline:
            if failure is not None:
                raise failure
            raise AssertionError(f"not within {timeout:g} s; last answer: {answer!r}")
        await asyncio.sleep(interval)
