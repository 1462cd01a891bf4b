"""What one tenant may take of a process: things under way at the same time, threads, turns."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar
from weakref import WeakValueDictionary

from deskwire.common.v1 import error_reason_pb2
from deskwire_common.errors import ResourceExhausted

T = TypeVar("T")


class Quota:
    """How many of one kind each tenant, and all of them together, may have under way within this process."""

    def __init__(
        self,
        per_tenant: int,
        total: int | None = None,
        *,
        show: Callable[[int], object] = lambda _count: None,
    ) -> None:
        """`total` None: as many as the tenants may. `show` is told how many there are, at each change."""
        self._per_tenant = per_tenant
        self._total = total
        self._show = show
        self._taken: Counter[str] = Counter()
        self._sum = 0

    @contextmanager
    def taken(self, tenant: str, what: str) -> Iterator[None]:
        """Count one more during the block; `what` names them in the plural.

        Raises ResourceExhausted: RATE_LIMITED when the tenant has enough, OVERLOADED when the process has.
        """
        if self._taken[tenant] >= self._per_tenant:
            raise too_many(what, self._per_tenant, retry_after=1.0)
        if self._total is not None and self._sum >= self._total:
            raise ResourceExhausted(
                f"the process has as many {what} as it may; try again later",
                reason=error_reason_pb2.ERROR_REASON_OVERLOADED,
                retry_after=5.0,
            )
        self._add(tenant, 1)
        try:
            yield
        finally:
            self._add(tenant, -1)

    def _add(self, tenant: str, count: int) -> None:
        self._taken[tenant] += count
        if not self._taken[tenant]:
            del self._taken[tenant]
        self._sum += count
        self._show(self._sum)


class Turns:
    """One at a time for each tenant, within this process: who counts what a tenant has, and then adds to it.

    No call to another system belongs into a turn.
    """

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, tenant: str) -> asyncio.Lock:
        """Return the lock to hold."""
        return self._locks.setdefault(tenant, asyncio.Lock())


class Shares:
    """How many things of each tenant are done at a time, within this process; its others wait behind its own."""

    def __init__(self, per_tenant: int) -> None:
        self._per_tenant = per_tenant
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def of(self, tenant: str) -> asyncio.Semaphore:
        """Return what to hold while one is done."""
        return self._shares.setdefault(tenant, asyncio.Semaphore(self._per_tenant))


class Threads:
    """Threads for work that blocks, of which each tenant has a share; its other work waits behind its own."""

    def __init__(self, name: str, count: int, per_tenant: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._shares = Shares(per_tenant)

    async def run(self, tenant: str, work: Callable[[], T]) -> T:
        """Do `work` in a thread, and raise what it raises. Whoever stops waiting holds the thread until its end."""
        loop = asyncio.get_running_loop()
        share = self._shares.of(tenant)
        await share.acquire()

        def release(_done: object) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(share.release)

        future = self._pool.submit(work)
        future.add_done_callback(release)
        return await asyncio.wrap_future(future)


def too_many(what: str, limit: int, *, retry_after: float) -> ResourceExhausted:
    """The error for a tenant that has `limit` already."""
    return ResourceExhausted(
        f"a tenant may have {limit} {what}",
        reason=error_reason_pb2.ERROR_REASON_RATE_LIMITED,
        retry_after=retry_after,
    )
