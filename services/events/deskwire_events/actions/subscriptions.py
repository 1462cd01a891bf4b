"""Subscriptions: made, read, changed, paused, set to another place, deleted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from deskwire.events.v1 import event_hub_service_pb2 as pb
from deskwire.events.v1 import subscription_pb2
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import InvalidArgument, OutOfRange
from deskwire_common.events import DomainEvent
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.ids import Ids
from deskwire_common.outbox import Outbox
from deskwire_common.pagination import PageKey, page
from deskwire_common.quota import too_many
from deskwire_common.sealing import Sealer
from deskwire_events import conditions, domain, events, store
from deskwire_events.actions.checks import check_text
from deskwire_events.actions.finding import find
from deskwire_events.actions.publishing import HUB
from deskwire_events.actions.webhooks import new_secret
from deskwire_events.callers import tenant_caller
from deskwire_events.domain import (
    Cursors,
    Progress,
    Selection,
    SinkKind,
    State,
    Subscription,
    Wanted,
    readable_topics,
    webhooks,
)
from deskwire_events.spine import Spine

CREATE: Final = f"{HUB}/CreateSubscription"
UPDATE: Final = f"{HUB}/UpdateSubscription"
PAUSE: Final = f"{HUB}/PauseSubscription"
RESUME: Final = f"{HUB}/ResumeSubscription"
SEEK: Final = f"{HUB}/SeekSubscription"
ROTATE: Final = f"{HUB}/RotateWebhookSecret"
DELETE: Final = f"{HUB}/DeleteSubscription"

#: Seconds that the secret before a new one signs, too.
_OVERLAP: Final = 86_400

ResponseT = TypeVar("ResponseT", bound=Message)
Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class SubscriptionActions:
    """Subscriptions of the current principal's tenant.

    `most` is how many a tenant may have, `allow_http` whether webhooks may do without TLS. `changed` is called after a
    commit that a worker must hear of.
    """

    db: Database
    outbox: Outbox
    idempotency: IdempotencyStore
    clock: Clock
    ids: Ids
    spine: Spine
    cursors: Cursors
    sealer: Sealer
    allow_http: bool
    most: int
    changed: Callable[[], None]

    async def create(self, request: pb.CreateSubscriptionRequest) -> pb.CreateSubscriptionResponse:
        """Make one; the secret of a webhook is told only this once.

        Raises AlreadyExists, InvalidArgument, OutOfRange, PermissionDenied, ResourceExhausted.
        """
        principal = tenant_caller()
        asked = request.subscription
        check_text("request_id", request.request_id)
        wanted = _wanted(asked.filter)
        selection = readable_topics(principal.role, wanted.event_types)
        is_webhook = asked.HasField("webhook")
        secret = sealed = ""
        if is_webhook:
            self._check_url(asked.webhook, "subscription.webhook.url")
            secret, sealed = new_secret(self.sealer, principal.tenant, asked.subscription_id)
        fresh = domain.create(
            None,
            tenant=principal.tenant,
            subscription_id=asked.subscription_id,
            incarnation=self.ids.uuid7(),
            system_id=principal.system,
            wanted=wanted,
            role=principal.role.value,
            now=to_micros(self.clock.now()),
            kind=SinkKind.WEBHOOK if is_webhook else SinkKind.STREAM,
            sink={"url": asked.webhook.url} if is_webhook else {},
            secrets={webhooks.CURRENT: sealed} if is_webhook else {},
        )
        places = await self._places(selection, principal.tenant, request.start)
        # It is stored for duplicates of the request, before the secret is in it.
        response = pb.CreateSubscriptionResponse(subscription=events.subscription_message(fresh))

        async def work(uow: UnitOfWork) -> pb.CreateSubscriptionResponse:
            if await store.subscriptions.count(uow.connection, principal.tenant) >= self.most:
                raise too_many("subscriptions", self.most, retry_after=60.0)
            if not await store.subscriptions.add(uow, fresh):
                raise domain.taken(fresh.subscription_id)
            await store.places.save(uow, {fresh.incarnation: places}, {})
            await self._tell(uow, events.created_event(fresh, ids=self.ids, clock=self.clock))
            return response

        answer = await self.idempotency.once(self.db, method=CREATE, request=request, work=work)
        if answer is response:
            answer.secret = secret
        return answer

    async def get(self, request: pb.GetSubscriptionRequest) -> pb.GetSubscriptionResponse:
        """One, and how far behind it is. Raises NotFound (SUBSCRIPTION_NOT_FOUND), Unavailable."""
        found = await find(self.db, request.subscription_id)
        mine = found.incarnation
        async with self.db.read() as connection:
            done = await store.subscriptions.progress_of(connection, [mine])
            places = (await store.places.load(connection, [mine]))[mine]
            parked = await store.kept.count_parked(connection, mine)
        bounds = await self.spine.broker.bounds(places)
        lag = sum(
            max(0, kept.high - max(places[place], kept.low)) for place, kept in bounds.items()
        )
        return pb.GetSubscriptionResponse(
            subscription=events.subscription_message(found, done.get(mine)),
            lag=lag,
            parked_count=parked,
        )

    async def list(self, request: pb.ListSubscriptionsRequest) -> pb.ListSubscriptionsResponse:
        """A page by id. Raises InvalidArgument (INVALID_PAGE_TOKEN)."""
        done: dict[str, Progress] = {}
        async with self.db.read() as connection:

            async def read(key: PageKey | None, limit: int) -> Sequence[Subscription]:
                after = str(key[0]) if key else ""
                rows = await store.subscriptions.page(
                    connection, tenant_caller().tenant, after=after, limit=limit
                )
                mine = [each.incarnation for each in rows]
                done.update(await store.subscriptions.progress_of(connection, mine))
                return rows

            found, token = await page(
                request,
                "ListSubscriptions",
                {},
                shape=(str,),
                read=read,
                key=lambda each: (each.subscription_id,),
                view=lambda each: events.subscription_message(each, done.get(each.incarnation)),
            )
        return pb.ListSubscriptionsResponse(subscriptions=found, next_page_token=token)

    async def update(self, request: pb.UpdateSubscriptionRequest) -> pb.UpdateSubscriptionResponse:
        """Replace filter and URL. Raises NotFound, VersionMismatch, InvalidArgument, PermissionDenied."""
        principal = tenant_caller()
        done = await self._answered(UPDATE, request, pb.UpdateSubscriptionResponse)
        if done is not None:
            return done
        found = await find(self.db, request.subscription_id)
        has_url = request.HasField("webhook")
        if has_url:
            if found.kind is not SinkKind.WEBHOOK:
                raise InvalidArgument("it is no webhook", field="webhook")
            self._check_url(request.webhook, "webhook.url")
        asked = _wanted(request.filter) if request.HasField("filter") else None
        wanted = found.wanted if asked is None else asked
        selection = replace(found, wanted=wanted).selection
        # The caller's role bounds what it may ask for, too.
        readable_topics(principal.role, wanted.event_types)
        latest = await self._places(selection, principal.tenant, None)

        async def work(uow: UnitOfWork, before: Subscription) -> Subscription:
            await store.places.add(uow, before.incarnation, latest)
            sink = {**before.sink, "url": request.webhook.url} if has_url else before.sink
            return before.changed(sink=sink, wanted=before.wanted if asked is None else asked)

        return await self._change(UPDATE, request, work, pb.UpdateSubscriptionResponse)

    async def pause(self, request: pb.PauseSubscriptionRequest) -> pb.PauseSubscriptionResponse:
        """Stop deliveries. Raises NotFound, VersionMismatch, PermissionDenied."""

        async def work(_uow: UnitOfWork, before: Subscription) -> Subscription:
            paused = before.state is State.PAUSED
            return before if paused else before.changed(state=State.PAUSED, reason="")

        return await self._change(PAUSE, request, work, pb.PauseSubscriptionResponse)

    async def resume(self, request: pb.ResumeSubscriptionRequest) -> pb.ResumeSubscriptionResponse:
        """Go on. Raises NotFound, VersionMismatch, PermissionDenied."""

        async def work(uow: UnitOfWork, before: Subscription) -> Subscription:
            if before.state is State.ACTIVE:
                return before
            await store.subscriptions.forgive(uow, before.incarnation)
            return before.changed(state=State.ACTIVE, reason="")

        return await self._change(RESUME, request, work, pb.ResumeSubscriptionResponse)

    async def seek(self, request: pb.SeekSubscriptionRequest) -> pb.SeekSubscriptionResponse:
        """Set the place. Raises NotFound, FailedPrecondition (INVALID_STATE), VersionMismatch, OutOfRange."""
        done = await self._answered(SEEK, request, pb.SeekSubscriptionResponse)
        if done is not None:
            return done
        found = await find(self.db, request.subscription_id)
        domain.check_idle(found)
        places = await self._places(found.selection, tenant_caller().tenant, request.start)

        async def work(_uow: UnitOfWork, before: Subscription) -> Subscription:
            domain.check_idle(before)
            # Its worker writes the places, under its term: the last save of the one before may still be under way.
            return before.changed(seek=places)

        return await self._change(SEEK, request, work, pb.SeekSubscriptionResponse)

    async def rotate_secret(
        self, request: pb.RotateWebhookSecretRequest
    ) -> pb.RotateWebhookSecretResponse:
        """Make a new secret, and tell it only this once. Raises NotFound, VersionMismatch, PermissionDenied."""
        secret, sealed = new_secret(self.sealer, tenant_caller().tenant, request.subscription_id)
        overlap = request.overlap.ToSeconds() if request.HasField("overlap") else _OVERLAP
        response = pb.RotateWebhookSecretResponse()

        async def work(_uow: UnitOfWork, before: Subscription) -> Subscription:
            until = to_micros(self.clock.now()) + overlap * 1_000_000
            return webhooks.rotate(webhooks.check_webhook(before), sealed, until)

        def told(subscription: subscription_pb2.Subscription) -> pb.RotateWebhookSecretResponse:
            response.subscription.CopyFrom(subscription)
            return response

        answer = await self._change(ROTATE, request, work, told)
        if answer is response:
            answer.secret = secret
        return answer

    async def delete(self, request: pb.DeleteSubscriptionRequest) -> pb.DeleteSubscriptionResponse:
        """End it and forget all about it. Raises NotFound, VersionMismatch, PermissionDenied."""
        principal = tenant_caller()
        check_text("request_id", request.request_id)

        async def work(uow: UnitOfWork) -> pb.DeleteSubscriptionResponse:
            found = await store.subscriptions.lock(uow, principal.tenant, request.subscription_id)
            before = domain.check_change(
                found, request.subscription_id, principal.system, request.expected_version
            )
            if before.kind is SinkKind.ADAPTER:
                raise domain.no_subscription(request.subscription_id)
            last = before.changed(removed=True)
            await store.subscriptions.remove(uow, before)
            await self._tell(uow, events.deleted_event(last, ids=self.ids, clock=self.clock))
            return pb.DeleteSubscriptionResponse(subscription=events.subscription_message(before))

        return await self.idempotency.once(self.db, method=DELETE, request=request, work=work)

    # -- inside ------------------------------------------------------------------------------------

    async def _answered(
        self, method: str, request: Any, response_class: type[ResponseT]
    ) -> ResponseT | None:
        """The answer that a repeated call got before: what it would be refused for by now doesn't count."""
        check_text("request_id", request.request_id)
        return await self.idempotency.answered(
            self.db, method=method, request=request, response_class=response_class
        )

    async def _change(
        self,
        method: str,
        request: Any,
        work: Callable[[UnitOfWork, Subscription], Awaitable[Subscription]],
        response: Callable[..., ResponseT],
    ) -> ResponseT:
        principal = tenant_caller()
        check_text("request_id", request.request_id)

        async def change(uow: UnitOfWork) -> ResponseT:
            found = await store.subscriptions.lock(uow, principal.tenant, request.subscription_id)
            before = domain.check_change(
                found, request.subscription_id, principal.system, request.expected_version
            )
            after = await work(uow, before)
            if after is not before:
                await store.subscriptions.save(uow, after)
                await self._tell(uow, events.updated_event(after, ids=self.ids, clock=self.clock))
            return response(subscription=events.subscription_message(after))

        return await self.idempotency.once(self.db, method=method, request=request, work=change)

    async def _tell(self, uow: UnitOfWork, event: DomainEvent) -> None:
        await self.outbox.add(uow, [event])
        uow.after_commit(self.changed)

    def _check_url(self, webhook: subscription_pb2.Webhook, field: str) -> None:
        webhooks.check_url(webhook.url, allow_http=self.allow_http, field=field)

    async def _places(
        self, selection: Selection, tenant: str, start: subscription_pb2.SubscriptionStart | None
    ) -> Mapping[Place, int]:
        position = None if start is None else start.WhichOneof("position")
        if start is None or position in {None, "latest"}:
            return await self.spine.begin(selection, tenant, "latest")
        if position == "time":
            try:
                millis = max(0, start.time.ToMilliseconds())
            except (ValueError, OverflowError) as error:
                raise InvalidArgument("not a time", field="start.time") from error
            return await self.spine.begin(selection, tenant, millis)
        if position == "earliest":
            return await self.spine.begin(selection, tenant, "earliest")
        names = await self.spine.topics_of(selection, tenant)
        cursor = self.cursors.decode(start.cursor, tenant, names)
        places = await self.spine.begin(selection, tenant, cursor.places)
        bounds = await self.spine.broker.bounds(places)
        if not cursor.ours or any(
            not kept.low <= places[place] <= kept.high for place, kept in bounds.items()
        ):
            raise OutOfRange("the cursor is older than what is kept, or of another cluster")
        return places


def _wanted(asked: subscription_pb2.SubscriptionFilter) -> Wanted:
    """The filter of a request. Raises InvalidArgument for a condition that is wrong or costs too much."""
    if asked.cel:
        conditions.condition(asked.cel)
    return Wanted(
        event_types=tuple(asked.event_types),
        subjects=tuple(asked.subjects),
        attributes=dict(asked.attributes),
        cel=asked.cel,
    )
