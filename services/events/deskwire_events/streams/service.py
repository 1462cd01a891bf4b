"""The RPC Subscribe: one stream of what the caller's role may see in its tenant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

from deskwire.common.v1 import error_reason_pb2
from deskwire.events.v1 import event_hub_service_pb2 as pb
from deskwire_common import loops
from deskwire_common.auth import Principal
from deskwire_common.clock import Clock
from deskwire_common.errors import InvalidArgument, Unavailable
from deskwire_common.metrics import METRICS
from deskwire_common.pacing import link_pace
from deskwire_common.quota import Quota
from deskwire_events import conditions
from deskwire_events.callers import tenant_caller
from deskwire_events.domain import Cursors, Filter, Wanted, readable_topics
from deskwire_events.spine import Spine
from deskwire_events.streams.credit import Credit
from deskwire_events.streams.unnamed import Unnamed

#: Seconds of silence after which a stream gets a checkpoint.
CHECKPOINT: Final = 15.0


@dataclass(slots=True)
class Subscriptions:
    """Makes the streams; `stop` ends all of them."""

    spine: Spine
    cursors: Cursors
    clock: Clock
    open: Quota
    stopping: bool = False
    _wakes: set[asyncio.Event] = field(default_factory=set)

    def stop(self) -> None:
        """End all streams: their clients come back with their cursors."""
        self.stopping = True
        for wake in self._wakes:
            wake.set()

    async def serve(
        self, requests: AsyncIterator[pb.SubscribeRequest], _context: Any
    ) -> AsyncGenerator[bytes]:
        """One stream of what the caller's role may see in its tenant, as encoded SubscribeResponses.

        Raises InvalidArgument, OutOfRange (CURSOR_EXPIRED), PermissionDenied, ResourceExhausted, Unavailable.
        """
        principal = tenant_caller()
        with self.open.taken(principal.tenant, "open streams"):
            async with aclosing(self._stream(principal, requests)) as responses:
                async for response in responses:
                    yield response

    async def _stream(
        self, principal: Principal, requests: AsyncIterator[pb.SubscribeRequest]
    ) -> AsyncGenerator[bytes, None]:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("kind") != "start":
            raise InvalidArgument("the first request of the stream must be start", field="kind")
        start = first.start
        selection = readable_topics(principal.role, start.event_types)
        credit = Credit(start.credit, start.credit_bytes)
        wake = asyncio.Event()
        self._wakes.add(wake)
        stream = Unnamed(
            principal.tenant,
            selection,
            _filter(principal.tenant, start),
            json=start.json,
            credit=credit,
            spine=self.spine,
            cursors=self.cursors,
            wake=wake,
        )
        listener = asyncio.create_task(_listen(requests, credit, wake), name="subscribe-credit")
        listener.add_done_callback(lambda _: wake.set())
        METRICS.hub_subscriptions.inc()
        try:
            await stream.open(start)
            async for answer in self._answers(stream, credit, listener, wake):
                yield answer
        finally:
            METRICS.hub_subscriptions.dec()
            self._wakes.discard(wake)
            listener.cancel()
            stream.close()
            await asyncio.gather(listener, return_exceptions=True)

    async def _answers(
        self,
        stream: Unnamed,
        credit: Credit,
        listener: asyncio.Task[None],
        wake: asyncio.Event,
    ) -> AsyncGenerator[bytes, None]:
        """The answers, for ever; it ends when there is no credit and none can come."""
        yield stream.answer()[0]
        clock = self.clock
        told = clock.monotonic()
        pace = link_pace(1)
        while True:
            if self.stopping:
                raise Unavailable(
                    "the hub is stopping; come back with the last cursor",
                    reason=error_reason_pb2.ERROR_REASON_SHUTTING_DOWN,
                    retry_after=1.0,
                )
            await stream.check()
            if listener.done():
                listener.result()
                if credit.empty:
                    return
            now = clock.monotonic()
            if stream.waiting:
                # What is on its way in the same moment goes in the same answer.
                pause = pace.pause(now)
                if pause > 0:
                    await asyncio.sleep(pause)
                answer, count = stream.answer()
                told = clock.monotonic()
                pace.began(told, count)
                yield answer
            elif now - told >= CHECKPOINT:
                told = now
                yield stream.answer()[0]
            else:
                wake.clear()
                await loops.wait(wake, told + CHECKPOINT - now)


async def _listen(
    requests: AsyncIterator[pb.SubscribeRequest], credit: Credit, wake: asyncio.Event
) -> None:
    """Take the later requests of a stream, until the client says no more."""
    async for request in requests:
        if request.WhichOneof("kind") != "credit":
            raise InvalidArgument("a stream has one start; then it gives credit", field="kind")
        credit.give(request.credit.events, request.credit.bytes)
        wake.set()


def _filter(tenant: str, start: pb.SubscribeStart) -> Filter:
    wanted = Wanted(
        event_types=tuple(start.event_types),
        subjects=tuple(start.subjects),
        attributes=dict(start.attributes),
        cel=start.cel,
    )
    condition = conditions.condition(start.cel) if start.cel else None
    return Filter(tenant, wanted, condition=condition)
