"""The collaborators and helpers of every use case."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message as ProtoMessage

from deskwire_chat.domain.actors import Actor
from deskwire_chat.events import Occasion
from deskwire_common import telemetry
from deskwire_common.clock import Clock, now_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.ids import Ids
from deskwire_common.outbox import Outbox

ResponseT = TypeVar("ResponseT", bound=ProtoMessage)

Look = Callable[[], Awaitable[None]]
"""Has admission read at once what a transaction has changed (keepers.AdmissionKeeper.look)."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The collaborators of every use case."""

    db: Database
    outbox: Outbox
    idempotency: IdempotencyStore
    clock: Clock
    ids: Ids

    def now(self) -> int:
        """Microseconds since 1970 UTC."""
        return now_micros(self.clock)

    def occasion(self, by: Actor, *, traceparent: str | None = None) -> Occasion:
        """Return the occasion of a change made now, in the trace of the current call unless another one is given."""
        if traceparent is None:
            traceparent = telemetry.current_traceparent()
        return Occasion(self.ids.uuid7(), self.now(), by, traceparent)

    async def once(
        self,
        method: str,
        request: Any,
        work: Callable[[UnitOfWork], Awaitable[ResponseT]],
    ) -> ResponseT:
        """Do `work` in a transaction of its own, once per request_id. Raises RequestIdReused, Unavailable."""
        return await self.idempotency.once(self.db, method=method, request=request, work=work)
