"""The register of adapters."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire.common.v1 import error_reason_pb2
from deskwire.events.v1 import adapter_registry_service_pb2 as registry_pb
from deskwire_common import exact
from deskwire_common.auth import Principal, Role
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from deskwire_common.events import DomainEvent
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.ids import Ids
from deskwire_common.outbox import Outbox
from deskwire_common.pagination import PageKey, page
from deskwire_common.quota import Quota, Turns, too_many
from deskwire_common.sealing import Sealer
from deskwire_events import domain, events, json_schema, store
from deskwire_events.actions.checks import check_ascii, check_text, is_ascii
from deskwire_events.callers import tenant_caller
from deskwire_events.domain import Delivery, Progress, SinkKind, Subscription
from deskwire_events.sinks import AdapterSink, Schema, clean
from deskwire_events.spine import Spine

REGISTRY: Final = "deskwire.events.v1.AdapterRegistryService"
REGISTER: Final = f"{REGISTRY}/RegisterAdapter"
UPDATE: Final = f"{REGISTRY}/UpdateAdapter"
REMOVE: Final = f"{REGISTRY}/RemoveAdapter"


class MakeAdapter(Protocol):
    """Makes the adapter of a request, from the one that was removed and what its Schema accepts."""

    def __call__(self, before: Subscription | None, accepts: tuple[str, ...] = ...) -> Subscription:
        """Raises AlreadyExists when the one before wasn't removed."""
        ...


@dataclass(frozen=True, slots=True)
class AdapterActions:
    """The register of adapters, for the current principal and in its tenant. An adapter is a subscription.

    `open_adapter` is the way to one, `max_adapters` and `under_way` how many a tenant may have and
    register at the same time. `changed` is called after a commit that changed which adapters there are.
    """

    db: Database
    outbox: Outbox
    idempotency: IdempotencyStore
    clock: Clock
    ids: Ids
    spine: Spine
    sealer: Sealer
    open_adapter: Callable[[Subscription], AdapterSink]
    max_adapters: int
    under_way: Quota
    changed: Callable[[], None]
    _turns: Turns = field(default_factory=Turns)

    async def register(
        self, request: registry_pb.RegisterAdapterRequest
    ) -> registry_pb.RegisterAdapterResponse:
        """Register an adapter that answers; the workers then push to it.

        Raises AlreadyExists, FailedPrecondition (ADAPTER_UNUSABLE), PermissionDenied, RequestIdReused,
        ResourceExhausted (RATE_LIMITED).
        """
        principal = tenant_caller()
        adapter = self._asked(principal, request)
        found = await self.idempotency.answered(
            self.db,
            method=REGISTER,
            request=request,
            response_class=registry_pb.RegisterAdapterResponse,
        )
        if found is not None:
            return found
        await self._check_room(principal.tenant, adapter)
        # The adapter may be slow, or silent: it is asked under no lock and in no transaction.
        with self.under_way.taken(principal.tenant, "registrations under way"):
            accepts = await self._introduce(adapter(None))
        selection = domain.topics_of(adapter(None, accepts).event_types)
        latest = await self.spine.begin(selection, principal.tenant, "latest")

        async def work(uow: UnitOfWork) -> registry_pb.RegisterAdapterResponse:
            before = await store.subscriptions.lock(
                uow, principal.tenant, request.adapter.adapter_id
            )
            after = adapter(before, accepts)
            await self._check_count(uow.connection, principal.tenant)
            if before is not None:
                await store.subscriptions.save(uow, after)
            elif not await store.subscriptions.add(uow, after):
                raise domain.registered_already(after.subscription_id)
            await store.places.add(uow, after.incarnation, latest)
            await store.subscriptions.forgive(uow, after.incarnation)
            await self._record(uow, events.registered_event(after, ids=self.ids, clock=self.clock))
            return registry_pb.RegisterAdapterResponse(adapter=events.adapter_message(after))

        async with self._turns.of(principal.tenant):
            return await self.idempotency.once(self.db, method=REGISTER, request=request, work=work)

    async def update(
        self, request: registry_pb.UpdateAdapterRequest
    ) -> registry_pb.UpdateAdapterResponse:
        """Change an adapter that answers. Raises NotFound, VersionMismatch, and as `register`."""
        principal = tenant_caller()
        adapter = self._asked(principal, request)
        found = await self.idempotency.answered(
            self.db,
            method=UPDATE,
            request=request,
            response_class=registry_pb.UpdateAdapterResponse,
        )
        if found is not None:
            return found
        adapter_id, expected = request.adapter.adapter_id, request.expected_version
        async with self.db.read() as connection:
            before = await store.subscriptions.get(connection, principal.tenant, adapter_id)
        asked = domain.change_adapter(before, adapter(None), principal.system, expected)
        with self.under_way.taken(principal.tenant, "registrations under way"):
            accepts = await self._introduce(asked)
        fresh = adapter(None, accepts)
        selection = domain.topics_of(fresh.event_types)
        latest = await self.spine.begin(selection, principal.tenant, "latest")

        async def work(uow: UnitOfWork) -> registry_pb.UpdateAdapterResponse:
            before = await store.subscriptions.lock(uow, principal.tenant, adapter_id)
            after = domain.change_adapter(before, fresh, principal.system, expected)
            await store.subscriptions.save(uow, after)
            await store.places.add(uow, after.incarnation, latest)
            await self._record(uow, events.updated_event(after, ids=self.ids, clock=self.clock))
            return registry_pb.UpdateAdapterResponse(adapter=events.adapter_message(after))

        return await self.idempotency.once(self.db, method=UPDATE, request=request, work=work)

    def _asked(
        self,
        principal: Principal,
        request: registry_pb.RegisterAdapterRequest | registry_pb.UpdateAdapterRequest,
    ) -> MakeAdapter:
        """What makes the adapter that a request asks for. Raises InvalidArgument, PermissionDenied."""
        wanted = request.adapter
        check_text("request_id", request.request_id)
        for name in ("adapter_id", "system_id", "target"):
            check_ascii(f"adapter.{name}", getattr(wanted, name))
        domain.check_system(wanted.system_id, principal.system)
        if wanted.secret_refs and principal.role is not Role.OPERATOR:
            raise PermissionDenied("only an operator may name secrets of the hub's")
        config = _config(wanted.config)
        incarnation = self.ids.uuid7()
        about = domain.owner_of_secrets(principal.tenant, wanted.adapter_id)
        sealed = {name: self.sealer.seal(text, about) for name, text in wanted.credentials.items()}

        def adapter(before: Subscription | None, accepts: tuple[str, ...] = ()) -> Subscription:
            return domain.register(
                before,
                tenant=principal.tenant,
                adapter_id=wanted.adapter_id,
                incarnation=incarnation,
                system_id=wanted.system_id,
                target=wanted.target,
                event_types=wanted.event_types,
                accepts=accepts,
                credentials=sealed,
                config=config,
                secret_refs=wanted.secret_refs,
                now=to_micros(self.clock.now()),
            )

        return adapter

    async def _check_room(
        self, tenant: str, adapter: Callable[[Subscription | None], Subscription]
    ) -> None:
        """Raises AlreadyExists when the adapter is there, ResourceExhausted when the tenant has enough others."""
        adapter_id = adapter(None).subscription_id
        async with self.db.read() as connection:
            adapter(await store.subscriptions.get(connection, tenant, adapter_id))
            await self._check_count(connection, tenant)

    async def _check_count(self, connection: AsyncConnection, tenant: str) -> None:
        count = await store.subscriptions.count(connection, tenant, SinkKind.ADAPTER)
        if count >= self.max_adapters:
            raise too_many("adapters", self.max_adapters, retry_after=60.0)

    async def _introduce(self, adapter: Subscription) -> tuple[str, ...]:
        client = self.open_adapter(adapter)
        try:
            schema = await client.introduce(lambda schema: _check_config(schema, adapter.config))
        finally:
            await client.close()
        accepts = schema.event_types
        asked = frozenset(adapter.wanted.event_types)
        if asked and accepts and not asked & frozenset(accepts):
            raise FailedPrecondition(
                f"the adapter takes none of {', '.join(adapter.wanted.event_types)}",
                reason=error_reason_pb2.ERROR_REASON_ADAPTER_UNUSABLE,
            )
        return accepts

    async def remove(
        self, request: registry_pb.RemoveAdapterRequest
    ) -> registry_pb.RemoveAdapterResponse:
        """End pushing. Raises NotFound (ADAPTER_NOT_FOUND), PermissionDenied, RequestIdReused."""
        principal = tenant_caller()
        check_text("request_id", request.request_id)
        _check_known(request.adapter_id)

        async def work(uow: UnitOfWork) -> registry_pb.RemoveAdapterResponse:
            before = await store.subscriptions.lock(uow, principal.tenant, request.adapter_id)
            after = domain.remove(before, request.adapter_id, principal.system)
            await store.subscriptions.save(uow, after)
            await self._record(uow, events.removed_event(after, ids=self.ids, clock=self.clock))
            return registry_pb.RemoveAdapterResponse(adapter=events.adapter_message(after))

        return await self.idempotency.once(self.db, method=REMOVE, request=request, work=work)

    async def _record(self, uow: UnitOfWork, event: DomainEvent) -> None:
        """Have the event of a change published, and the workers look at what there is now."""
        await self.outbox.add(uow, [event])
        uow.after_commit(self.changed)

    async def get(self, request: registry_pb.GetAdapterRequest) -> registry_pb.GetAdapterResponse:
        """One adapter. Raises NotFound (ADAPTER_NOT_FOUND)."""
        adapter = await self._adapter(request.adapter_id, SinkKind.ADAPTER)
        if adapter.removed:
            raise domain.not_found(request.adapter_id)
        async with self.db.read() as connection:
            done = await store.subscriptions.progress_of(connection, [adapter.incarnation])
        message = events.adapter_message(adapter, done.get(adapter.incarnation))
        return registry_pb.GetAdapterResponse(adapter=message)

    async def list(
        self, request: registry_pb.ListAdaptersRequest
    ) -> registry_pb.ListAdaptersResponse:
        """A page of adapters by id. Raises InvalidArgument (INVALID_PAGE_TOKEN)."""
        done: dict[str, Progress] = {}
        async with self.db.read() as connection:

            async def read(key: PageKey | None, limit: int) -> Sequence[Subscription]:
                rows = await store.subscriptions.page(
                    connection,
                    tenant_caller().tenant,
                    after=str(key[0]) if key else "",
                    limit=limit,
                    kind=SinkKind.ADAPTER,
                )
                done.update(
                    await store.subscriptions.progress_of(
                        connection, [each.incarnation for each in rows]
                    )
                )
                return rows

            found, token = await page(
                request,
                "ListAdapters",
                {},
                shape=(str,),
                read=read,
                key=lambda adapter: (adapter.subscription_id,),
                view=lambda adapter: events.adapter_message(adapter, done.get(adapter.incarnation)),
            )
        return registry_pb.ListAdaptersResponse(adapters=found, next_page_token=token)

    async def list_deliveries(
        self, request: registry_pb.ListDeliveriesRequest
    ) -> registry_pb.ListDeliveriesResponse:
        """A page of ends, newest first. Raises NotFound, InvalidArgument (INVALID_PAGE_TOKEN)."""
        adapter = await self._adapter(request.adapter_id, SinkKind.ADAPTER, SinkKind.WEBHOOK)
        filters: dict[str, Any] = {
            "adapter_id": request.adapter_id,
            "dead_letters": request.dead_letters,
        }
        async with self.db.read() as connection:

            async def read(key: PageKey | None, limit: int) -> Sequence[Delivery]:
                below = int(key[0]) if key else None
                if not request.dead_letters:
                    return await store.deliveries.page(
                        connection, adapter.incarnation, below=below, limit=limit
                    )
                letters = await store.kept.letters(
                    connection, adapter.incarnation, below=below, limit=limit
                )
                return [end for end, _ in letters]

            found, token = await page(
                request,
                "ListDeliveries",
                filters,
                shape=(int,),
                read=read,
                key=lambda end: (end.number,),
                view=lambda end: events.delivery_message(adapter.subscription_id, end),
            )
        return registry_pb.ListDeliveriesResponse(deliveries=found, next_page_token=token)

    async def _adapter(self, adapter_id: str, *kinds: SinkKind) -> Subscription:
        """A subscription of these kinds, also a removed one. Raises NotFound (ADAPTER_NOT_FOUND)."""
        _check_known(adapter_id)
        async with self.db.read() as connection:
            adapter = await store.subscriptions.get(connection, tenant_caller().tenant, adapter_id)
        if adapter is None or adapter.kind not in kinds:
            raise domain.not_found(adapter_id)
        return adapter


def _config(given: str) -> str:
    """A configuration as it is kept. Raises InvalidArgument unless it is a JSON object."""
    if not given:
        return ""
    try:
        config = exact.loads(given)
    except InvalidArgument as error:
        raise InvalidArgument(f"config is {error.message}", field="adapter.config") from error
    if not isinstance(config, dict):
        raise InvalidArgument("config is no JSON object", field="adapter.config")
    return exact.dumps(config)


def _check_config(schema: Schema, config: str) -> None:
    """Raises InvalidArgument unless an adapter takes this configuration, FailedPrecondition for a useless Schema."""
    if not schema.config_schema:
        if config:
            raise InvalidArgument("the adapter takes no configuration", field="adapter.config")
        return
    try:
        json_schema.check(schema.config_schema, json.loads(config or "{}"), "adapter.config")
    except json_schema.SchemaInvalid as error:
        raise FailedPrecondition(
            f"the adapter can't be used: its config_schema is wrong: {clean(str(error))}",
            reason=error_reason_pb2.ERROR_REASON_ADAPTER_UNUSABLE,
        ) from error


def _check_known(adapter_id: str) -> None:
    # An id that no adapter can have; columns of ids are ASCII.
    if not is_ascii(adapter_id):
        raise domain.not_found(adapter_id)
