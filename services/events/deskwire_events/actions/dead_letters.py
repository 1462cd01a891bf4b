"""Dead letters: looked at, delivered again, forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from deskwire.events.v1 import event_hub_service_pb2 as pb
from deskwire.events.v1 import subscription_pb2
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import InvalidArgument
from deskwire_common.events import DomainEvent
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.ids import Ids
from deskwire_common.outbox import Outbox
from deskwire_common.pagination import PageKey, page
from deskwire_events import domain, events, store
from deskwire_events.actions.checks import check_text, is_ascii
from deskwire_events.actions.publishing import HUB
from deskwire_events.callers import tenant_caller
from deskwire_events.domain import Delivery, Subscription
from deskwire_events.spine import Carried
from deskwire_events.store.kept import Kept, Parked

REDRIVE: Final = f"{HUB}/RedriveDeadLetters"
PURGE: Final = f"{HUB}/PurgeDeadLetters"
#: Dead letters of one call.
MOST: Final = 500


@dataclass(frozen=True, slots=True)
class DeadLetterActions:
    """Dead letters of the current principal's tenant. `changed` is called after a commit that a worker must hear of."""

    db: Database
    outbox: Outbox
    idempotency: IdempotencyStore
    clock: Clock
    ids: Ids
    changed: Callable[[], None]

    async def list_dead_letters(
        self, request: pb.ListDeadLettersRequest
    ) -> pb.ListDeadLettersResponse:
        """A page, newest first. Raises NotFound, InvalidArgument (INVALID_PAGE_TOKEN), PermissionDenied."""
        principal = tenant_caller()
        async with self.db.read() as connection:
            found = None
            if is_ascii(request.subscription_id):
                found = await store.subscriptions.get(
                    connection, principal.tenant, request.subscription_id
                )
            mine = _of_caller(found, request.subscription_id, principal.system)

            async def read(key: PageKey | None, limit: int) -> Sequence[tuple[Delivery, Kept]]:
                below = int(key[0]) if key else None
                return await store.kept.letters(
                    connection, mine.incarnation, below=below, limit=limit
                )

            letters, token = await page(
                request,
                "ListDeadLetters",
                {"subscription_id": request.subscription_id, "json": request.json},
                shape=(int,),
                read=read,
                key=lambda each: (each[0].number,),
                view=lambda each: _message(*each, json=request.json),
            )
        return pb.ListDeadLettersResponse(dead_letters=letters, next_page_token=token)

    async def redrive(self, request: pb.RedriveDeadLettersRequest) -> pb.RedriveDeadLettersResponse:
        """Deliver some again. Raises NotFound, PermissionDenied."""

        async def work(uow: UnitOfWork, found: Subscription) -> list[str]:
            letters = await self._take(uow, found, request)
            now = to_micros(self.clock.now())
            rows = [
                Parked(
                    incarnation=found.incarnation,
                    record=record,
                    attempts=end.attempts,
                    refusals=0,
                    since=0,
                    due=now,
                    detail=end.detail,
                )
                for end, record in letters
            ]
            await store.kept.park(uow, rows)
            return [end.event_id for end, _ in letters]

        async def answer(uow: UnitOfWork) -> pb.RedriveDeadLettersResponse:
            found = await self._lock(uow, request.subscription_id)
            event_ids = await work(uow, found)
            after = replace(found, revision=found.revision + 1, sequence=found.sequence + 1)
            if event_ids:
                told = events.redriven_event(after, event_ids, ids=self.ids, clock=self.clock)
                await self._save(uow, after, told)
            return pb.RedriveDeadLettersResponse(count=len(event_ids))

        check_text("request_id", request.request_id)
        return await self.idempotency.once(self.db, method=REDRIVE, request=request, work=answer)

    async def purge(self, request: pb.PurgeDeadLettersRequest) -> pb.PurgeDeadLettersResponse:
        """Forget some. Raises NotFound, PermissionDenied."""

        async def work(uow: UnitOfWork) -> pb.PurgeDeadLettersResponse:
            found = await self._lock(uow, request.subscription_id)
            letters = await self._take(uow, found, request)
            event_ids = [end.event_id for end, _ in letters]
            if event_ids:
                after = replace(found, sequence=found.sequence + 1)
                told = events.purged_event(after, event_ids, ids=self.ids, clock=self.clock)
                await self._save(uow, after, told)
            return pb.PurgeDeadLettersResponse(count=len(event_ids))

        check_text("request_id", request.request_id)
        return await self.idempotency.once(self.db, method=PURGE, request=request, work=work)

    async def _lock(self, uow: UnitOfWork, subscription_id: str) -> Subscription:
        principal = tenant_caller()
        found = None
        if is_ascii(subscription_id):
            found = await store.subscriptions.lock(uow, principal.tenant, subscription_id)
        return _of_caller(found, subscription_id, principal.system)

    async def _take(
        self, uow: UnitOfWork, found: Subscription, request: Any
    ) -> list[tuple[Delivery, Kept]]:
        letters = await store.kept.letters_of(
            uow,
            found.incarnation,
            event_ids=request.event_ids,
            event_types=request.event_types,
            limit=MOST,
        )
        await store.kept.exhume(uow, [end.number for end, _ in letters])
        return letters

    async def _save(self, uow: UnitOfWork, after: Subscription, event: DomainEvent) -> None:
        await store.subscriptions.save(uow, after)
        await self.outbox.add(uow, [event])
        uow.after_commit(self.changed)


def _of_caller(found: Subscription | None, subscription_id: str, system: str) -> Subscription:
    """A subscription whose dead letters the caller may see, also a removed adapter."""
    if found is None:
        raise domain.no_subscription(subscription_id)
    domain.check_system(found.system_id, system)
    return found


def _message(end: Delivery, record: Kept, *, json: bool) -> subscription_pb2.DeadLetter:
    text = ""
    if json:
        carried = Carried(
            record.topic, record.partition, record.offset, record.key, record.value, record.headers,
            record.timestamp,
        )  # fmt: skip
        try:
            text = carried.json.decode()
        except InvalidArgument:
            text = ""
    return events.dead_letter_message(end, record.topic, record.partition, record.offset, text)
