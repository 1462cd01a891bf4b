"""Use cases of the hub: publishing outside events, the catalogue, and the register of adapters."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final
from weakref import WeakValueDictionary

from google.protobuf.timestamp_pb2 import Timestamp

from deskwire.common.v1 import error_reason_pb2
from deskwire.common.v1.json_value_pb2 import JsonObject
from deskwire.events.v1 import adapter_registry_service_pb2 as registry_pb
from deskwire.events.v1 import event_hub_service_pb2 as hub_pb
from deskwire_common import events as codec
from deskwire_common import exact, texts, topics
from deskwire_common.auth import Principal
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import (
    FailedPrecondition,
    InvalidArgument,
)
from deskwire_common.events import DomainEvent
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.ids import Ids
from deskwire_common.outbox import Outbox
from deskwire_common.pagination import page
from deskwire_common.quota import Quota, too_many
from deskwire_events import domain, events, spine, store
from deskwire_events.adapters import OpenAdapter, introduce
from deskwire_events.callers import tenant_caller
from deskwire_events.domain import Adapter

HUB: Final = "deskwire.events.v1.EventHubService"
REGISTRY: Final = "deskwire.events.v1.AdapterRegistryService"
PUBLISH: Final = f"{HUB}/Publish"
REGISTER: Final = f"{REGISTRY}/RegisterAdapter"
REMOVE: Final = f"{REGISTRY}/RemoveAdapter"
#: Bytes of one PublishRequest.
MAX_PUBLISH: Final = 1 << 20
# 9999-12-31T23:59:59Z, the last second of a protobuf Timestamp.
_LAST_SECOND: Final = 253_402_300_799


@dataclass(frozen=True, slots=True)
class EventActions:
    """Events of outside systems, for the current principal and in its tenant."""

    db: Database
    outbox: Outbox
    idempotency: IdempotencyStore
    clock: Clock
    ids: Ids

    async def publish(self, request: hub_pb.PublishRequest) -> hub_pb.PublishResponse:
        """Store events; the relay brings them to Kafka. Raises InvalidArgument, RequestIdReused."""
        principal = tenant_caller()
        _check_text("request_id", request.request_id)
        for index, event in enumerate(request.events):
            _check_event(f"events[{index}]", event)
        data = [_data_of(f"events[{index}]", event) for index, event in enumerate(request.events)]

        async def work(uow: UnitOfWork) -> hub_pb.PublishResponse:
            counts = Counter(event.subject for event in request.events)
            # Locks the subjects before their events get their places in the outbox.
            last = await store.subjects.draw_sequences(uow, principal.tenant, counts)
            made: list[DomainEvent] = []
            for event, each in zip(request.events, data, strict=True):
                last[event.subject] += 1
                made.append(self._event(principal, event, each, last[event.subject]))
            await self.outbox.add(uow, made)
            return hub_pb.PublishResponse(event_ids=[event.event_id for event in made])

        return await self.idempotency.once(self.db, method=PUBLISH, request=request, work=work)

    async def list_event_types(
        self, _request: hub_pb.ListEventTypesRequest
    ) -> hub_pb.ListEventTypesResponse:
        """Every event type of deskwire's, by topic and type."""
        return hub_pb.ListEventTypesResponse(
            event_types=[
                hub_pb.EventType(
                    event_type=event_type,
                    topic=topic.name,
                    data_type=codec.data_class(event_type).DESCRIPTOR.full_name,
                    key=topic.key,
                    description=topic.event_types[event_type],
                )
                for topic in sorted(topics.TOPICS.values(), key=lambda topic: topic.name)
                for event_type in sorted(topic.event_types)
            ]
        )

    def _event(
        self, principal: Principal, event: hub_pb.ExternalEvent, data: JsonObject, sequence: int
    ) -> DomainEvent:
        occurred_at = event.occurred_at.ToMicroseconds() if event.HasField("occurred_at") else None
        return codec.new_event(
            data,
            event_type=event.event_type,
            subject=event.subject,
            sequence=sequence,
            ids=self.ids,
            clock=self.clock,
            occurred_at=occurred_at,
            topic=topics.EXTERNAL,
            key=f"{principal.tenant}/{event.subject}",
        )


@dataclass(frozen=True, slots=True)
class AdapterActions:
    """The register of adapters, for the current principal and in its tenant.

    `open_adapter` is the way to one, `max_adapters` and `under_way` how many a tenant may have and
    register at the same time. `changed` is called after a commit that changed which adapters there are.
    """

    db: Database
    outbox: Outbox
    idempotency: IdempotencyStore
    clock: Clock
    ids: Ids
    kafka: str
    open_adapter: OpenAdapter
    max_adapters: int
    under_way: Quota
    changed: Callable[[], None]
    _places: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    async def register(
        self, request: registry_pb.RegisterAdapterRequest
    ) -> registry_pb.RegisterAdapterResponse:
        """Register an adapter that answers; the workers then push to it.

        Raises AlreadyExists, FailedPrecondition (ADAPTER_UNUSABLE), PermissionDenied, RequestIdReused,
        ResourceExhausted (RATE_LIMITED).
        """
        principal = tenant_caller()
        wanted = request.adapter
        _check_text("request_id", request.request_id)
        for name in ("adapter_id", "system_id", "target"):
            _check_ascii(f"adapter.{name}", getattr(wanted, name))
        domain.check_system(wanted.system_id, principal.system)

        def adapter(before: Adapter | None, accepts: tuple[str, ...] = ()) -> Adapter:
            return domain.register(
                before,
                tenant=principal.tenant,
                adapter_id=wanted.adapter_id,
                system_id=wanted.system_id,
                target=wanted.target,
                event_types=wanted.event_types,
                accepts=accepts,
                credentials=wanted.credentials,
                now=to_micros(self.clock.now()),
            )

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
        fresh = adapter(None, accepts)

        async def work(uow: UnitOfWork) -> registry_pb.RegisterAdapterResponse:
            before = await store.adapters.lock(uow, principal.tenant, wanted.adapter_id)
            after = adapter(before, accepts)
            if before is not None:
                await store.adapters.save(uow, after)
            elif not await store.adapters.add(uow, after):
                raise domain.registered_already(after.adapter_id)
            await self._record(uow, events.registered_event(after, ids=self.ids, clock=self.clock))
            return registry_pb.RegisterAdapterResponse(adapter=events.adapter_message(after))

        # One at a time for each adapter: its group's places are committed before it is.
        lock = self._places.setdefault(fresh.group, asyncio.Lock())
        async with lock:
            await self._check_room(principal.tenant, adapter)
            names = await spine.resolve(self.kafka, domain.topics_of(fresh.wanted))
            await spine.begin_at_end(self.kafka, fresh.group, names)
            return await self.idempotency.once(self.db, method=REGISTER, request=request, work=work)

    async def _check_room(self, tenant: str, adapter: Callable[[Adapter | None], Adapter]) -> None:
        """Raises AlreadyExists when the adapter is there, ResourceExhausted when the tenant has enough others."""
        adapter_id = adapter(None).adapter_id
        async with self.db.read() as connection:
            adapter(await store.adapters.get(connection, tenant, adapter_id))
            count = await store.adapters.count(connection, tenant)
        if count >= self.max_adapters:
            raise too_many("adapters", self.max_adapters, retry_after=60.0)

    async def _introduce(self, adapter: Adapter) -> tuple[str, ...]:
        client = self.open_adapter(adapter)
        try:
            schema = await introduce(client)
        finally:
            await client.close()
        accepts = schema.event_types
        known = replace(adapter, accepts=accepts)
        if adapter.event_types and accepts and not known.wanted:
            raise FailedPrecondition(
                f"the adapter takes none of {', '.join(adapter.event_types)}",
                reason=error_reason_pb2.ERROR_REASON_ADAPTER_UNUSABLE,
            )
        return accepts

    async def remove(
        self, request: registry_pb.RemoveAdapterRequest
    ) -> registry_pb.RemoveAdapterResponse:
        """End pushing. Raises NotFound (ADAPTER_NOT_FOUND), PermissionDenied, RequestIdReused."""
        principal = tenant_caller()
        _check_text("request_id", request.request_id)
        _check_known(request.adapter_id)

        async def work(uow: UnitOfWork) -> registry_pb.RemoveAdapterResponse:
            before = await store.adapters.lock(uow, principal.tenant, request.adapter_id)
            after = domain.remove(before, request.adapter_id, principal.system)
            await store.adapters.save(uow, after)
            await self._record(uow, events.removed_event(after, ids=self.ids, clock=self.clock))
            return registry_pb.RemoveAdapterResponse(adapter=events.adapter_message(after))

        return await self.idempotency.once(self.db, method=REMOVE, request=request, work=work)

    async def _record(self, uow: UnitOfWork, event: DomainEvent) -> None:
        """Have the event of a change published, and the workers look at what there is now."""
        await self.outbox.add(uow, [event])
        uow.after_commit(self.changed)

    async def get(self, request: registry_pb.GetAdapterRequest) -> registry_pb.GetAdapterResponse:
        """One adapter. Raises NotFound (ADAPTER_NOT_FOUND)."""
        adapter = await self._adapter(request.adapter_id)
        return registry_pb.GetAdapterResponse(adapter=events.adapter_message(adapter))

    async def list(
        self, request: registry_pb.ListAdaptersRequest
    ) -> registry_pb.ListAdaptersResponse:
        """A page of adapters by id. Raises InvalidArgument (INVALID_PAGE_TOKEN)."""
        async with self.db.read() as connection:
            found, token = await page(
                request,
                "ListAdapters",
                {},
                shape=(str,),
                read=lambda key, limit: store.adapters.page(
                    connection,
                    tenant_caller().tenant,
                    after=str(key[0]) if key else "",
                    limit=limit,
                ),
                key=lambda adapter: (adapter.adapter_id,),
                view=events.adapter_message,
            )
        return registry_pb.ListAdaptersResponse(adapters=found, next_page_token=token)

    async def list_deliveries(
        self, request: registry_pb.ListDeliveriesRequest
    ) -> registry_pb.ListDeliveriesResponse:
        """A page of ends, newest first. Raises NotFound, InvalidArgument (INVALID_PAGE_TOKEN)."""
        adapter = await self._adapter(request.adapter_id)
        filters: dict[str, Any] = {
            "adapter_id": request.adapter_id,
            "dead_letters": request.dead_letters,
        }
        async with self.db.read() as connection:
            found, token = await page(
                request,
                "ListDeliveries",
                filters,
                shape=(int,),
                read=lambda key, limit: store.deliveries.page(
                    connection,
                    adapter.tenant,
                    adapter.adapter_id,
                    dead_only=request.dead_letters,
                    below=int(key[0]) if key else None,
                    limit=limit,
                ),
                key=lambda end: (end.number,),
                view=lambda end: events.delivery_message(adapter.adapter_id, end),
            )
        return registry_pb.ListDeliveriesResponse(deliveries=found, next_page_token=token)

    async def _adapter(self, adapter_id: str) -> Adapter:
        _check_known(adapter_id)
        async with self.db.read() as connection:
            adapter = await store.adapters.get(connection, tenant_caller().tenant, adapter_id)
        if adapter is None or adapter.removed:
            raise domain.not_found(adapter_id)
        return adapter


def _check_event(path: str, event: hub_pb.ExternalEvent) -> None:
    if domain.is_own_type(event.event_type):
        raise InvalidArgument(
            f"{event.event_type} is deskwire's own event type", field=f"{path}.event_type"
        )
    # Databases disagree about spaces at the end, and PostgreSQL stores no NUL.
    # A subject is a key: it isn't trimmed, but refused.
    if event.subject != texts.line(event.subject, f"{path}.subject"):
        raise InvalidArgument(
            "a subject has no blanks and no direction marks at its ends", field=f"{path}.subject"
        )
    if event.HasField("occurred_at") and not _is_time(event.occurred_at):
        raise InvalidArgument("not a time", field=f"{path}.occurred_at")


def _data_of(path: str, event: hub_pb.ExternalEvent) -> JsonObject:
    """What happened, whichever way it was said."""
    body = event.WhichOneof("body") or "data"
    try:
        if body == "data":
            return exact.json_object(event.data)
        plain = exact.loads(event.data_json)
        if not isinstance(plain, dict):
            raise InvalidArgument("not a JSON object")
        return exact.json_object(plain)
    except InvalidArgument as error:
        raise InvalidArgument(
            f"the data has no JSON form: {error.message}", field=f"{path}.{body}"
        ) from error


def _is_time(time: Timestamp) -> bool:
    return 0 <= time.seconds <= _LAST_SECOND and 0 <= time.nanos < 1_000_000_000


def _check_text(name: str, text: str) -> None:
    if "\x00" in text:
        raise InvalidArgument(f"{name} has a NUL character", field=name)


def _check_ascii(name: str, text: str) -> None:
    if not (text.isascii() and text.isprintable()):
        raise InvalidArgument(f"{name} must be printable ASCII", field=name)


def _check_known(adapter_id: str) -> None:
    # An id that no adapter can have; columns of ids are ASCII.
    if not (adapter_id.isascii() and adapter_id.isprintable()):
        raise domain.not_found(adapter_id)
