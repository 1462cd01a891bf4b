"""Which subscriptions this process works on: those of its slots, each as its row says at the moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common import loops
from deskwire_common.clock import Clock
from deskwire_common.db import AWAY, Database
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_common.ownership import Holdings, Slot, TermOver
from deskwire_events import store
from deskwire_events.domain import Progress, SinkKind, slot_of
from deskwire_events.running.ledger import Ledger
from deskwire_events.running.subscriber import Begin, Subscriber, Unit
from deskwire_events.spine import Spine

#: Seconds between looks at the rows, and between saves.
LOOK: Final = 0.5
TICK: Final = 0.4
#: Seconds between saves of places that moved over nothing that was wanted.
IDLE: Final = 10.0
_CHUNK: Final = 500

Make = Callable[[Begin], Subscriber | None]
"""Makes the subscriber of a row; None: this program has no sink of its kind."""


class Running:
    """A subscriber and its task."""

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.task = asyncio.create_task(
            self._run(), name=f"subscription-{subscriber.subscription.subject}"
        )

    async def _run(self) -> None:
        pauses = loops.Backoff(0.2, 30.0)
        while True:
            try:
                await self.subscriber.run()
                return
            except AWAY as error:
                get_logger().warning("subscription_waits", error=str(error))
            except Exception as error:  # noqa: BLE001 - a fault of one subscription must not stop the others
                METRICS.background_crashes.labels("deliver").inc()
                get_logger().error(
                    "subscription_crashed",
                    tenant=self.subscriber.subscription.tenant,
                    subscription_id=self.subscriber.subscription.subscription_id,
                    exc_info=error,
                )
            await pauses.pause()


class Keeper:
    """The subscriptions of this process's slots (ownership.Duties).

    `wake` has it look at the rows at once.
    """

    def __init__(
        self,
        db: Database,
        spine: Spine,
        ledger: Ledger,
        holdings: Holdings[Slot],
        make: Make,
        clock: Clock,
    ) -> None:
        self.wake = asyncio.Event()
        self._db = db
        self._spine = spine
        self._ledger = ledger
        self._holdings = holdings
        self._make = make
        self._clock = clock
        self._running: dict[str, Running] = {}
        self._slots: set[int] = set()
        self._idle_at = 0.0
        self._saving = asyncio.Lock()
        self._settling = asyncio.Lock()

    # -- slots -------------------------------------------------------------------------------------

    def gained(self, slots: Sequence[Slot]) -> None:
        """Begin with the subscriptions of these slots."""
        self._slots |= {int(slot.id) for slot in slots}
        self.wake.set()

    def lost(self, slots: Sequence[Slot]) -> None:
        """Send nothing more for these slots, and forget them."""
        gone = {int(slot.id) for slot in slots}
        self._slots -= gone
        for incarnation, running in list(self._running.items()):
            if running.subscriber.subscription.slot in gone:
                self._drop(incarnation)

    async def finish(self, slots: Sequence[Slot]) -> None:
        """Let what is under way end, and save it."""
        leaving = {int(slot.id) for slot in slots}
        self._slots -= leaving
        async with self._settling:
            await self._end(
                [
                    incarnation
                    for incarnation, running in self._running.items()
                    if running.subscriber.subscription.slot in leaving
                ]
            )

    async def opened(self, incarnation: str) -> Subscriber | None:
        """The subscriber of a subscription, which begins now if it doesn't run; None when it isn't this process's.

        Raises Unavailable.
        """
        async with self._settling:
            if incarnation not in self._running and slot_of(incarnation) in self._slots:
                await self._begin([incarnation])
            running = self._running.get(incarnation)
            return None if running is None else running.subscriber

    # -- loops -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep what runs as the rows say, until cancelled."""
        try:
            await loops.every(
                LOOK, self._settle, failed="subscriptions_not_read", outlast=AWAY, wake=self.wake
            )
        finally:
            for incarnation in list(self._running):
                self._drop(incarnation)

    async def save(self) -> None:
        """Save what was done, tick by tick, until cancelled."""
        await loops.every(TICK, self._tick, failed="subscriptions_not_saved", outlast=AWAY)

    async def _tick(self) -> None:
        now = self._clock.monotonic()
        idle = now - self._idle_at >= IDLE
        if idle:
            self._idle_at = now
        self._measure()
        await self._save(list(self._running.values()), idle=idle)

    def _measure(self) -> None:
        subscribers = [running.subscriber for running in self._running.values()]
        METRICS.hub_running.set(len(subscribers))
        METRICS.hub_failing.set(sum(each.progress.failing for each in subscribers))
        METRICS.hub_parked.set(sum(each.backlog.lanes.stored for each in subscribers))

    async def _save(self, runnings: Iterable[Running], *, idle: bool) -> None:
        """Save these, together. A slot whose term is over is left out, and given up."""
        async with self._saving:
            units: list[tuple[Subscriber, Unit]] = []
            for running in runnings:
                subscriber = running.subscriber
                if subscriber.unsavable:
                    continue
                unit = subscriber.collect(idle=idle)
                if unit:
                    units.append((subscriber, unit))
            if not units:
                return
            try:
                await self._write(units)
            except (TermOver, SQLAlchemyError) as error:
                if len(units) == 1:
                    self._failed(units[0][0], error)
                    return
                # One of them: the others are saved without it.
                for each in units:
                    try:
                        await self._write([each])
                    except (TermOver, SQLAlchemyError) as alone:
                        self._failed(each[0], alone)

    def _failed(self, subscriber: Subscriber, error: Exception) -> None:
        """What a subscription did can't be saved: nothing more of it may go out."""
        if isinstance(error, TermOver):
            get_logger().warning("term_over", error=str(error))
        else:
            METRICS.background_crashes.labels("ledger").inc()
            get_logger().error(
                "subscription_not_saved",
                tenant=subscriber.subscription.tenant,
                subscription_id=subscriber.subscription.subscription_id,
                exc_info=error,
            )
        subscriber.unsavable = True
        subscriber.halt()

    async def _write(self, units: Sequence[tuple[Subscriber, Unit]]) -> None:
        try:
            await self._ledger.save([unit for _, unit in units])
        except BaseException:
            for subscriber, unit in units:
                subscriber.unsaved(unit)
            raise
        for subscriber, unit in units:
            subscriber.saved(unit)

    # -- rows --------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """End what has changed or isn't ours, begin what is missing."""
        async with self._settling:
            async with self._db.read() as connection:
                wanted = await store.subscriptions.revisions(connection, self._slots)
            await self._end(
                [
                    incarnation
                    for incarnation, running in self._running.items()
                    if incarnation not in wanted
                    or wanted[incarnation][0] != running.subscriber.subscription.revision
                    or running.subscriber.unused
                ]
            )
            # Those of streams begin when somebody reads them.
            missing = [
                each
                for each, (_, kind) in wanted.items()
                if kind is not SinkKind.STREAM and each not in self._running
            ]
            for start in range(0, len(missing), _CHUNK):
                await self._begin(missing[start : start + _CHUNK])

    async def _begin(self, incarnations: Sequence[str]) -> None:
        async with self._db.read() as connection:
            begins = await _load(connection, incarnations)
        seeking = [each.subscription for each in begins if each.subscription.seek is not None]
        if seeking:
            await self._ledger.begin_anew(seeking)
            async with self._db.read() as connection:
                begins = await _load(connection, incarnations)
        # Rows may have changed between the two readings.
        begins = [each for each in begins if each.subscription.running]
        places = await self._spine.complete(
            [(b.subscription.selection, b.subscription.tenant, b.places) for b in begins]
        )
        fresh: list[Running] = []
        for begin, mine in zip(begins, places, strict=True):
            subscription = begin.subscription
            if subscription.slot not in self._slots:
                continue
            subscriber = self._make(
                Begin(subscription, mine, begin.known, begin.lanes, begin.progress)
            )
            if subscriber is not None:
                get_logger().info(
                    "subscription_begins",
                    tenant=subscription.tenant,
                    subscription_id=subscription.subscription_id,
                )
                running = self._running[subscription.incarnation] = Running(subscriber)
                fresh.append(running)
        try:
            await self._spine.attach([running.subscriber.feed for running in fresh])
        except BaseException:
            # They begin again at the next look.
            for running in fresh:
                self._drop(running.subscriber.subscription.incarnation)
            raise

    async def _end(self, incarnations: Collection[str]) -> None:
        """End these in good order: what is under way ends first, and is saved."""
        ending = [(each, self._running[each]) for each in incarnations]
        for _, running in ending:
            self._spine.detach(running.subscriber.feed)
        await asyncio.gather(*(running.subscriber.stop() for _, running in ending))
        await self._save([running for _, running in ending], idle=True)
        for incarnation, _ in ending:
            self._drop(incarnation)

    def _drop(self, incarnation: str) -> None:
        running = self._running.pop(incarnation, None)
        if running is None:
            return
        self._spine.detach(running.subscriber.feed)
        running.subscriber.halt()
        running.task.cancel()


async def _load(connection: AsyncConnection, incarnations: Sequence[str]) -> list[Begin]:
    found = await store.subscriptions.load(connection, incarnations)
    places = await store.places.load(connection, incarnations)
    known = await store.kept.offsets(connection, places)
    lanes = await store.kept.lanes(connection, incarnations)
    progress = await store.subscriptions.progress_of(connection, incarnations)
    begins = []
    for each in found:
        mine = each.incarnation
        begins.append(
            Begin(
                each,
                places.get(mine, {}),
                known.get(mine, {}),
                lanes.get(mine, []),
                progress.get(mine, Progress()),
            )
        )
    return begins
