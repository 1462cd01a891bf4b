"""Quotas: how many of one kind a tenant may have under way at the same time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from deskwire.common.v1 import error_reason_pb2
from deskwire_common.errors import ResourceExhausted


class Quota:
    """`limit` of them for each tenant, within this process."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: Counter[str] = Counter()

    @contextmanager
    def taken(self, tenant: str, what: str) -> Iterator[None]:
        """Count one more during the block; `what` names them in the plural. Raises ResourceExhausted (RATE_LIMITED)."""
        if self._taken[tenant] >= self._limit:
            raise too_many(what, self._limit, retry_after=1.0)
        self._taken[tenant] += 1
        try:
            yield
        finally:
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]


def too_many(what: str, limit: int, *, retry_after: float) -> ResourceExhausted:
    """The error for a tenant that has `limit` already."""
    return ResourceExhausted(
        f"a tenant may have {limit} {what}",
        reason=error_reason_pb2.ERROR_REASON_RATE_LIMITED,
        retry_after=retry_after,
    )
