"""Pushes the backlog of one subscription to its sink: one batch at a time, or several events side by side."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from deskwire_common import loops, telemetry
from deskwire_common.clock import Clock
from deskwire_common.db import Database
from deskwire_common.errors import Unavailable
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_events.domain import Filter, Limits, Outcome, Result
from deskwire_events.engine import Bucket, Item, Throttle
from deskwire_events.running.subscriber import Begin, Subscriber
from deskwire_events.sinks import MAX_BATCH, Away, Faulty, Outgoing, Sink, TooLarge, clean
from deskwire_events.spine import Carried, Spine

#: Pauses after failures of a target, in seconds.
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 30.0
#: Seconds that a batch under way may take when the work ends.
_PATIENCE: Final = 2.0
_IDLE: Final = 60.0


class Pusher(Subscriber):
    """A subscription whose sink is pushed to. `dead_letter_limit` dead letters in a row stop it."""

    def __init__(
        self,
        begin: Begin,
        filter_: Filter,
        sink: Sink,
        *,
        db: Database,
        spine: Spine,
        clock: Clock,
        limits: Limits,
        dead_letter_limit: int,
    ) -> None:
        super().__init__(begin, filter_, db, spine, clock)
        self._sink = sink
        self._limits = limits
        self._dead_letter_limit = dead_letter_limit
        self._throttle = Throttle(
            MAX_BATCH, first=FIRST_PAUSE, longest=LONGEST_PAUSE, uniform=random.uniform
        )
        rate = float(begin.subscription.sink.get("rate", 0.0))
        self._bucket = Bucket(rate, max(rate, 1.0))
        self._stopping = False
        self._idle = asyncio.Event()
        self._trouble = ""
        # Calls side by side, and when the target was found to be away: what was sent before says nothing new of it.
        self._sending: set[asyncio.Task[None]] = set()
        self._crash: BaseException | None = None
        self._away_at = float("-inf")

    def measure(self, carried: Carried) -> int:
        """As the sink counts."""
        return self._sink.measure(carried)

    async def run(self) -> None:
        """Push until stopped; outlasts whatever the target does."""
        # What a fault of ours left under way, if this is another try.
        for lane in list(self.backlog.lanes):
            if lane.flight is not None:
                self.backlog.put_back(lane.flight)
        try:
            while not (self._stopping or self.halted):
                self.work.clear()
                now = self.now
                self.backlog.lanes.wake(now)
                await self.load_parked()
                pause = self._pause(now)
                if pause > 0:
                    await loops.wait(self.work, pause)
                else:
                    await self._push_some(now)
                self.make_room()
                if self._crash is not None:
                    raise self._crash
        finally:
            try:
                await self._land()
            finally:
                self._crash = None
                self._idle.set()
                await self._sink.close()

    async def _land(self) -> None:
        """Let what is under way side by side end, for a while."""
        try:
            if self._sending:
                await asyncio.wait(self._sending, timeout=_PATIENCE)
        finally:
            for task in self._sending:
                task.cancel()

    async def stop(self) -> None:
        """Let the batch under way end, for a while."""
        self._stopping = True
        self.work.set()
        await loops.wait(self._idle, _PATIENCE)

    def _pause(self, now: float) -> float:
        """Seconds until there is something to push, unless `work` is set before; 0: now."""
        lanes = self.backlog.lanes
        if self._sending and (self._throttle.open or len(self._sending) >= self._sink.parallel):
            return _IDLE
        if not lanes.ready:
            due = lanes.next_due
            return _IDLE if due is None else max(0.01, min(due - now, _IDLE))
        room = self._bucket.room(now)
        wait = self._bucket.wait() if room is not None and room < 1 else 0.0
        return max(wait, self._throttle.until - now)

    # -- pushing -----------------------------------------------------------------------------------

    async def _push_some(self, now: float) -> None:
        sink, throttle = self._sink, self._throttle
        try:
            await sink.ready()
        except (Away, Faulty) as error:
            self._away(error, self._clock.monotonic())
            return
        if self._stopping or self.halted:
            return
        room = self._bucket.room(now)
        most = sink.max_batch if sink.parallel == 1 else sink.parallel - len(self._sending)
        count = 1 if throttle.open else min(throttle.limit, most)
        batch = self.backlog.send(count if room is None else min(count, room), sink.max_bytes)
        for item in [item for item in batch if item.size > sink.max_event]:
            batch.remove(item)
            self._bury(item, f"it has {item.size} bytes, and a Push takes {sink.max_event}")
        if not batch:
            return
        self._bucket.spend(len(batch))
        if sink.parallel == 1:
            await self._send(batch)
            return
        for item in batch:
            task = asyncio.create_task(self._send([item]))
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        """One of those side by side has ended: there is room for another."""
        self._sending.discard(task)
        if not task.cancelled():
            self._crash = self._crash or task.exception()
        self.work.set()

    async def _send(self, batch: Sequence[Item]) -> None:
        """Deliver a batch, and apply what comes of it."""
        began = self._clock.monotonic()
        spans = [_span(item, self.subscription.subscription_id) for item in batch]
        sent = [
            Outgoing(item.body, item.attempts, telemetry.traceparent_of(span) or _parent(item))
            for item, span in zip(batch, spans, strict=True)
        ]
        outcomes = ["UNAVAILABLE"] * len(batch)
        try:
            results = await self._deliver(sent)
            outcomes = [result.outcome.name for result in results]
        except TooLarge as error:
            self._too_large(batch, error)
        except Faulty as error:
            self._faulty(batch, error, began)
        except Away as error:
            self._put_back(batch)
            self._away(error, began)
        else:
            self._answered(batch, results, sent, began)
        finally:
            _close(spans, outcomes)

    async def _deliver(self, sent: Sequence[Outgoing]) -> Sequence[Result]:
        """Deliver a batch. Raises Away, Faulty and TooLarge, whatever the sink does."""
        try:
            results = await self._sink.deliver(sent)
        except (Away, Faulty, TooLarge):
            raise
        except Exception as error:
            # A fault of the sink, perhaps by one event: that one is found like one that its target can't bear.
            METRICS.background_crashes.labels("sink").inc()
            get_logger().error(
                "sink_failed",
                subscription_id=self.subscription.subscription_id,
                exc_info=error,
            )
            raise Faulty("the sink failed; the hub's log says why") from error
        if len(results) != len(sent):
            raise Faulty(f"the sink gave {len(results)} results for {len(sent)} events")
        return results

    def _answered(
        self,
        batch: Sequence[Item],
        results: Sequence[Result],
        sent: Sequence[Outgoing],
        began: float,
    ) -> None:
        """Apply the results, each to its own key."""
        asked: float | None = None
        failure = gone = ""
        for item, result, out in zip(batch, results, sent, strict=True):
            if result.outcome.final:
                METRICS.hub_delivery_seconds.observe(
                    max(self.now - item.body.timestamp / 1000, 0.0)
                )
                if result.outcome.dead:
                    self._bury(item, result.detail, outcome=result.outcome, parent=out.traceparent)
                else:
                    self.end(item, result, out.traceparent)
                continue
            failure = clean(result.detail) or result.outcome.name.lower()
            if result.gone:
                self.backlog.put_back(item)
                gone = failure
            elif result.outcome in {Outcome.RATE_LIMITED, Outcome.AUTH_EXPIRED}:
                self.backlog.put_back(item)
                asked = max(asked or 0.0, result.retry_after or 0.0)
            else:
                self._refused(item, failure, result.retry_after)
        if asked is not None:
            self._rest(asked or None, began)
        elif not self._is_old(began):
            self._throttle.worked()
        self._tell(gone or failure)
        if gone:
            # The ledger writes down that it is stopped; not one more is sent meanwhile.
            self.stopped = gone
            self.halt()

    def _too_large(self, batch: Sequence[Item], error: TooLarge) -> None:
        if len(batch) == 1:
            self._bury(batch[0], error.message)
            return
        self._throttle.too_large(len(batch))
        self._put_back(batch)

    def _faulty(self, batch: Sequence[Item], error: Faulty, began: float) -> None:
        self._tell(error.message)
        if self._is_old(began):
            self._put_back(batch)
        elif self._throttle.failed(self.now, len(batch)):
            self._refused(batch[0], error.message, error.retry_after)
        else:
            self._put_back(batch)
            if len(batch) == 1:
                # Not this event: the target.
                self._away_at = self._clock.monotonic()

    def _away(self, error: Unavailable, began: float) -> None:
        self._rest(error.retry_after, began)
        self._tell(error.message, error.detail if isinstance(error, Away) else "")

    def _rest(self, asked: float | None, began: float) -> None:
        """Leave the target alone, for the seconds that it asked for or for a growing pause."""
        if not self._is_old(began):
            asked = None if asked is None else min(asked, self._limits.asked)
            self._throttle.away(self.now, asked)
            self._away_at = self._clock.monotonic()

    def _is_old(self, began: float) -> bool:
        """Whether what was sent then went out before the target was found to be away."""
        return began < self._away_at

    def _put_back(self, batch: Sequence[Item]) -> None:
        for item in batch:
            self.backlog.put_back(item)

    def _refused(self, item: Item, detail: str, asked: float | None) -> None:
        """This event failed: its key waits, or its way ends."""
        limits, now = self._limits, self.now
        if limits.is_over(item.refusals + 1, item.since, now):
            self._bury(item, f"after {item.refusals + 1} tries: {detail}")
            return
        pause = _key_pause(item.refusals, limits) if asked is None else min(asked, limits.asked)
        self.backlog.retry(item, due=now + pause, now=now, detail=clean(detail))

    def _bury(
        self,
        item: Item,
        detail: str,
        *,
        outcome: Outcome = Outcome.REJECTED,
        parent: str = "",
    ) -> None:
        METRICS.hub_dead_letters.inc()
        get_logger().warning(
            "dead_letter",
            subscription_id=self.subscription.subscription_id,
            event_id=item.body.event_id.decode(),
            detail=detail,
        )
        self.end(item, Result(outcome, detail), parent or _parent(item))
        if self.progress.rejected_in_row >= self._dead_letter_limit:
            # The ledger writes down that it is stopped; not one more is sent meanwhile.
            self.halt()

    def _tell(self, failure: str, detail: str = "") -> None:
        """Note what fails at the moment; "": nothing does."""
        failure = clean(failure)
        self.progress = replace(
            self.progress, failing=bool(failure), last_error=failure or self.progress.last_error
        )
        if failure and failure != self._trouble:
            get_logger().warning(
                "sink_in_trouble",
                tenant=self.subscription.tenant,
                subscription_id=self.subscription.subscription_id,
                error=detail or failure,
            )
        self._trouble = failure


def _key_pause(refusals: int, limits: Limits) -> float:
    top = min(limits.first * 2.0 ** min(refusals, 30), limits.longest)
    return random.uniform(top / 2, top)  # noqa: S311 - jitter


def _span(item: Item, subscription_id: str) -> Span:
    carried: Carried = item.body
    return telemetry.tracer().start_span(
        "hub.push",
        context=telemetry.context_of(_parent(item)) or Context(),
        kind=SpanKind.CLIENT,
        attributes={
            "deskwire.event_id": carried.event_id.decode(),
            "deskwire.event_type": carried.kind.decode(),
            "deskwire.adapter_id": subscription_id,
            "deskwire.attempt": item.attempts,
            "messaging.destination.name": carried.topic,
        },
    )


def _parent(item: Item) -> str:
    carried: Carried = item.body
    return carried.traceparent.decode("ascii", "replace")


def _close(spans: Sequence[Span], outcomes: Sequence[str]) -> None:
    for span, outcome in zip(spans, outcomes, strict=True):
        span.set_attribute("deskwire.outcome", outcome)
        if outcome not in {"DELIVERED", "DUPLICATE", "SKIPPED"}:
            span.set_status(Status(StatusCode.ERROR, outcome))
        span.end()
        METRICS.hub_deliveries.labels(outcome.lower()).inc()
