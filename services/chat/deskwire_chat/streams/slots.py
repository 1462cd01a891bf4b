"""How many streams may be open, and whose may stay open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deskwire_common.auth import Principal
from deskwire_common.errors import ResourceExhausted
from deskwire_common.metrics import METRICS

Admit = Callable[[Principal], None]
"""Raises for a caller who isn't admitted any more (live.admission.Admission)."""


class Slots:
    """Bounds how many long calls this process, and each tenant in it, may have open."""

    def __init__(self, total: int, per_tenant: int) -> None:
        self._total = total
        self._per_tenant = per_tenant
        self._taken: dict[str, int] = {}
        self._sum = 0

    @contextmanager
    def one(self, tenant: str) -> Iterator[None]:
        """Hold one slot while the block runs. Raises ResourceExhausted."""
        taken = self._taken.get(tenant, 0)
        if taken >= self._per_tenant or self._sum >= self._total:
            whose = "the tenant" if taken >= self._per_tenant else "the process"
            raise ResourceExhausted(
                f"{whose} has as many streams open as it may; try again later", retry_after=5.0
            )
        self._taken[tenant] = taken + 1
        self._sum += 1
        METRICS.chat_streams.set(self._sum)
        try:
            yield
        finally:
            self._sum -= 1
            METRICS.chat_streams.set(self._sum)
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]
