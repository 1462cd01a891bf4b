"""The RPC Subscribe: one stream of what the caller's role may see in its tenant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
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
from deskwire_common.pacing import Pace
from deskwire_common.quota import Quota
from deskwire_events import conditions
from deskwire_events.callers import tenant_caller
from deskwire_events.domain import Cursors, Filter, Wanted, readable_topics
from deskwire_events.spine import Spine
from deskwire_events.streams.credit import Credit
from deskwire_events.streams.named import Named, NamedStream
from deskwire_events.streams.unnamed import Unnamed

#: Seconds of silence after which a stream gets a checkpoint.
CHECKPOINT: Final = 15.0
#: Seconds between two full answers of a stream: the more streams, the more; and the most.
_SPACING: Final = 0.004
_WIDEST: Final = 0.03


@dataclass(slots=True)
class Subscriptions:
    """Makes the streams; `stop` ends all of them."""

    spine: Spine
    cursors: Cursors
    clock: Clock
    open: Quota
    named: Named
    stopping: bool = False
    _wakes: set[asyncio.Event] = field(default_factory=set)

    def stop(self) -> None:
        """End all streams: their clients come back with their cursors."""
        self.stopping = True
        for wake in self._wakes:
            wake.set()

    async def serve(
        self, requests: AsyncIterator[pb.SubscribeRequest], context: Any
    ) -> AsyncGenerator[bytes]:
        """One stream of what the caller's role may see in its tenant, as encoded SubscribeResponses.

        Raises InvalidArgument, OutOfRange (CURSOR_EXPIRED), PermissionDenied, NotFound, FailedPrecondition,
        ResourceExhausted, Unavailable.
        """
        principal = tenant_caller()
        with self.open.taken(principal.tenant, "open streams"):
            first = await anext(requests, None)
            if first is None or first.WhichOneof("kind") != "start":
                raise InvalidArgument("the first request of the stream must be start", field="kind")
            if first.start.subscription_id:
                responses = self._named(principal, first, requests, context)
            else:
                responses = self._unnamed(principal, first.start, requests)
            METRICS.hub_subscriptions.inc()
            try:
                async with aclosing(responses):
                    async for response in responses:
                        yield response
            finally:
                METRICS.hub_subscriptions.dec()

    async def _unnamed(
        self,
        principal: Principal,
        start: pb.SubscribeStart,
        requests: AsyncIterator[pb.SubscribeRequest],
    ) -> AsyncGenerator[bytes, None]:
        selection = readable_topics(principal.role, start.event_types)
        credit = Credit(start.credit, start.credit_bytes)
        wake = asyncio.Event()
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

        def take(request: pb.SubscribeRequest) -> None:
            if request.WhichOneof("kind") != "credit":
                raise InvalidArgument("a stream has one start; then it gives credit", field="kind")
            credit.give(request.credit.events, request.credit.bytes)
            wake.set()

        def is_over() -> bool:
            return credit.empty

        try:
            await stream.open(start)
            async for answer in self._answers(stream, _listen(requests, take), is_over, wake):
                yield answer
        finally:
            stream.close()

    async def _named(
        self,
        principal: Principal,
        first: pb.SubscribeRequest,
        requests: AsyncIterator[pb.SubscribeRequest],
        context: Any,
    ) -> AsyncGenerator[bytes, None]:
        found = await self.named.find(principal, first.start)
        streamer = await self.named.streamer(found)
        if streamer is None:
            async with aclosing(self.named.pass_on(found, first, requests, context)) as answers:
                async for answer in answers:
                    yield answer
            return
        wake = asyncio.Event()
        stream = NamedStream(streamer, first.start, wake)
        try:
            # Acks come until the client says no more; then what it has is all that it gets.
            async for answer in self._answers(
                stream, _listen(requests, stream.take), lambda: True, wake
            ):
                yield answer
        finally:
            stream.close()

    async def _answers(
        self,
        stream: Unnamed | NamedStream,
        listening: Coroutine[Any, Any, None],
        is_over: Callable[[], bool],
        wake: asyncio.Event,
    ) -> AsyncGenerator[bytes, None]:
        """The answers, for ever; it ends when the client says no more and `is_over`."""
        self._wakes.add(wake)
        listener = asyncio.create_task(listening, name="subscribe-requests")
        listener.add_done_callback(lambda _: wake.set())
        try:
            yield stream.answer()[0]
            told = self.clock.monotonic()
            pace = Pace(
                linger=0.001, spacing=min(_SPACING + 0.001 * len(self._wakes), _WIDEST), many=3
            )
            while True:
                self._check()
                stream.check()
                if listener.done():
                    listener.result()
                    if is_over():
                        return
                now = self.clock.monotonic()
                if stream.waiting:
                    # What is on its way in the same moment goes in the same answer.
                    pause = pace.pause(now)
                    if pause > 0:
                        await asyncio.sleep(pause)
                    answer, count = stream.answer()
                    told = self.clock.monotonic()
                    pace.began(told, count)
                    yield answer
                elif now - told >= CHECKPOINT:
                    told = now
                    yield stream.answer()[0]
                else:
                    wake.clear()
                    await loops.wait(wake, told + CHECKPOINT - now)
        finally:
            self._wakes.discard(wake)
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)

    def _check(self) -> None:
        if self.stopping:
            raise Unavailable(
                "the hub is stopping; come back with the last cursor",
                reason=error_reason_pb2.ERROR_REASON_SHUTTING_DOWN,
                retry_after=1.0,
            )


async def _listen(
    requests: AsyncIterator[pb.SubscribeRequest], take: Callable[[pb.SubscribeRequest], None]
) -> None:
    """Take the later requests of a stream, until the client says no more."""
    async for request in requests:
        take(request)


def _filter(tenant: str, start: pb.SubscribeStart) -> Filter:
    wanted = Wanted(
        event_types=tuple(start.event_types),
        subjects=tuple(start.subjects),
        attributes=dict(start.attributes),
        cel=start.cel,
    )
    condition = conditions.condition(start.cel) if start.cel else None
    return Filter(tenant, wanted, condition=condition)
