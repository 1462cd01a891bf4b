"""Saves what subscriptions have done: all of a tick in one transaction, under the terms of their slots."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from deskwire_common.clock import Clock
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.events import DomainEvent
from deskwire_common.ids import Ids
from deskwire_common.logging import get_logger
from deskwire_common.outbox import Outbox
from deskwire_common.ownership import Holdings, Slot, TermOver
from deskwire_events import events, store
from deskwire_events.domain import DEAD_LETTERED, Delivery, State, Subscription
from deskwire_events.engine import Item
from deskwire_events.running.subscriber import End, Unit, kept
from deskwire_events.store.kept import Dead, Parked


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where ticks are written, with the events that tell of dead letters and losses.

    `dead_letter_limit` dead letters in a row stop a subscription.
    """

    db: Database
    outbox: Outbox
    clock: Clock
    ids: Ids
    holdings: Holdings[Slot]
    dead_letter_limit: int

    async def save(self, units: Sequence[Unit]) -> None:
        """Write units. Raises TermOver when the term of one of their slots is over, and Unavailable."""
        slots = {str(unit.subscription.slot) for unit in units}

        async def work(uow: UnitOfWork) -> None:
            terms = await self._fence(uow, slots)
            by_incarnation = {
                unit.subscription.incarnation: terms[str(unit.subscription.slot)] for unit in units
            }
            places = {u.subscription.incarnation: u.saves.places for u in units if u.saves.places}
            await store.places.save(uow, places, by_incarnation)
            await store.kept.park(
                uow,
                [
                    _parked(unit.subscription.incarnation, item)
                    for unit in units
                    for item in (*unit.saves.park, *unit.saves.update)
                ],
            )
            for unit in units:
                ids = {(each.topic, each.partition, each.offset) for each in unit.saves.delete}
                await store.kept.unpark(uow, unit.subscription.incarnation, ids)
            await store.deliveries.add(
                uow,
                {u.subscription.incarnation: [_delivery(end) for end in u.told] for u in units if u.told},
            )  # fmt: skip
            await store.subscriptions.save_progress(
                uow,
                {u.subscription.incarnation: u.progress for u in units if u.progress is not None},
            )
            for unit in sorted(units, key=lambda unit: unit.subscription.subject):
                if unit.dead or unit.losses or unit.stopped:
                    await self._tell(uow, unit)

        await self.db.run(work)

    async def begin_anew(self, subscriptions: Sequence[Subscription]) -> None:
        """Give subscriptions the places that they are to begin with. Raises TermOver and Unavailable."""
        slots = {str(each.slot) for each in subscriptions}

        async def work(uow: UnitOfWork) -> None:
            terms = await self._fence(uow, slots)
            for each in subscriptions:
                found = await store.subscriptions.lock(uow, each.tenant, each.subscription_id)
                if found is None or found.incarnation != each.incarnation or found.seek is None:
                    continue
                mine = found.incarnation
                await store.places.remove(uow, mine)
                await store.places.save(uow, {mine: found.seek}, {mine: terms[str(found.slot)]})
                await store.kept.forget_parked(uow, mine)
                await store.subscriptions.save(uow, replace(found, seek=None))

        await self.db.run(work)

    async def _fence(self, uow: UnitOfWork, slots: Collection[str]) -> Mapping[str, int]:
        terms = {}
        for slot in sorted(slots):
            mine = self.holdings.owned.get(slot)
            if mine is None:
                raise TermOver(self.holdings.kind, slot, 0)
            await self.holdings.rows.fence(uow, mine)
            terms[slot] = mine.term
        return terms

    async def _tell(self, uow: UnitOfWork, unit: Unit) -> None:
        """Write dead letters, and the events about them and about losses; perhaps stop the subscription."""
        mine = unit.subscription
        await store.kept.bury(
            uow, [Dead(mine.incarnation, kept(end.item), _delivery(end)) for end in unit.dead]
        )
        found = await store.subscriptions.lock(uow, mine.tenant, mine.subscription_id)
        if found is None or found.incarnation != mine.incarnation:
            return
        told: list[DomainEvent] = []
        for end in unit.dead:
            # A dead letter about a dead letter would beget the next one, for ever.
            if end.carried.kind.decode() != DEAD_LETTERED:
                sequence = found.sequence + len(told) + 1
                told.append(
                    events.dead_letter_event(
                        found, _delivery(end), sequence, ids=self.ids, clock=self.clock
                    )
                )
        for loss in unit.losses:
            sequence = found.sequence + len(told) + 1
            told.append(events.lost_event(found, loss, sequence, ids=self.ids, clock=self.clock))
        after = found
        row = unit.progress.rejected_in_row if unit.progress is not None else 0
        reason = unit.stopped or (
            f"{row} dead letters in a row" if row >= self.dead_letter_limit else ""
        )
        if reason and after.state is State.ACTIVE:
            after = replace(after, state=State.STOPPED, reason=reason, revision=after.revision + 1)
            get_logger().warning(
                "subscription_stopped",
                tenant=mine.tenant,
                subscription_id=mine.subscription_id,
                reason=reason,
            )
            sequence = found.sequence + len(told) + 1
            told.append(events.stopped_event(after, sequence, ids=self.ids, clock=self.clock))
        after = replace(after, sequence=found.sequence + len(told))
        await store.subscriptions.save(uow, after)
        await self.outbox.add(uow, told)


def _parked(incarnation: str, item: Item) -> Parked:
    return Parked(
        incarnation=incarnation,
        record=kept(item),
        attempts=item.attempts,
        refusals=item.refusals,
        since=int(item.since * 1e6),
        due=int(item.due * 1e6),
        detail=item.detail,
    )


def _delivery(end: End) -> Delivery:
    carried = end.carried
    return Delivery(
        event_id=carried.event_id.decode(),
        event_type=carried.kind.decode(),
        outcome=end.result.outcome,
        detail=end.result.detail,
        attempts=end.item.attempts,
        time=end.time,
        trace_id=_trace_id(end),
        traceparent=end.traceparent,
    )


def _trace_id(end: End) -> str:
    found = str(end.carried.event.trace_id)[:64]
    return found if found.isascii() and found.isprintable() else ""
