"""Use cases of sources: one transaction each, idempotent by request_id, the event in the same one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire.cdc.v1 import source_pb2
from deskwire.cdc.v1 import source_service_pb2 as pb
from deskwire.common.v1 import error_reason_pb2
from deskwire_cdc import events, store
from deskwire_cdc.domain.sources import CustomerRule, Source, SourceUnusable, State, check_rule
from deskwire_cdc.sources import ReaderOptions, kind_of, open_reader
from deskwire_common import topics
from deskwire_common.auth import Principal, Role, current_principal
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.ids import Ids
from deskwire_common.logging import get_logger
from deskwire_common.outbox import Outbox
from deskwire_common.pagination import page
from deskwire_common.quota import Quota, Turns, too_many

SERVICE: Final = "deskwire.cdc.v1.SourceService"
CREATE: Final = f"{SERVICE}/CreateSource"
LIST: Final = f"{SERVICE}/ListSources"
DELETE: Final = f"{SERVICE}/DeleteSource"

ResponseT = TypeVar("ResponseT", bound=Message)


@dataclass(frozen=True, slots=True)
class SourceActions:
    """What can be done with sources, for the current principal and in its tenant.

    `wake` is set when the workers have something new to look at. The rest says how many sources and captured tables
    a tenant may have, and how many it may create at the same time.
    """

    db: Database
    outbox: Outbox
    idempotency: IdempotencyStore
    clock: Clock
    ids: Ids
    options: ReaderOptions
    wake: asyncio.Event
    max_sources: int
    max_tables: int
    under_way: Quota
    _turns: Turns = field(default_factory=Turns)

    async def create_source(self, request: pb.CreateSourceRequest) -> pb.CreateSourceResponse:
        """Check the external database, remember the source, and put in place what captures it.

        When it returns, everything that is written to the tables from now on will be carried over. Raises
        AlreadyExists, SourceUnusable, PermissionDenied, InvalidArgument, RequestIdReused, ResourceExhausted.
        """
        principal = current_principal()
        _check_system(principal, request.source.system_id)
        source = self._new(request.source, principal)
        _check_kind(principal, source)
        response = await self._seen(CREATE, request, pb.CreateSourceResponse)
        if response is None:
            await self._check_free(source)
            with self.under_way.taken(source.tenant_id, "sources being created"):
                # Before the transaction: the external database may be slow.
                source = await self._checked(source)
            async with self._turns.of(source.tenant_id):
                response = await self._once(CREATE, request, lambda uow: self._create(uow, source))
            self.wake.set()
        async with self.db.read() as connection:
            live = await store.sources.get(connection, source.tenant_id, source.source_id)
        if live is not None:
            await self._install(live)
        return response

    async def get_source(self, request: pb.GetSourceRequest) -> pb.GetSourceResponse:
        """Return a source. Raises NotFound."""
        source = await self._find(current_principal(), request.source_id)
        return pb.GetSourceResponse(source=events.source_message(source))

    async def list_sources(self, request: pb.ListSourcesRequest) -> pb.ListSourcesResponse:
        """Return a page of the tenant's sources, by source_id. Raises InvalidArgument (INVALID_PAGE_TOKEN)."""
        tenant = current_principal().tenant
        async with self.db.read() as connection:
            found, token = await page(
                request,
                LIST,
                {},
                shape=(str,),
                read=lambda key, limit: store.sources.page(
                    connection, tenant, after=str(key[0]) if key else "", limit=limit
                ),
                key=lambda source: (source.source_id,),
                view=events.source_message,
            )
        return pb.ListSourcesResponse(sources=found, next_page_token=token)

    async def delete_source(self, request: pb.DeleteSourceRequest) -> pb.DeleteSourceResponse:
        """End capture. What was installed in the source is taken out by the workers, a moment later.

        Raises NotFound, PermissionDenied, RequestIdReused.
        """
        principal = current_principal()
        response = await self._seen(DELETE, request, pb.DeleteSourceResponse)
        if response is not None:
            return response
        source = await self._find(principal, request.source_id)
        _check_system(principal, source.system_id)
        _check_kind(principal, source)
        response = await self._once(DELETE, request, lambda uow: self._delete(uow, source))
        self.wake.set()
        return response

    # ----- within the transaction

    async def _create(self, uow: UnitOfWork, source: Source) -> pb.CreateSourceResponse:
        version = await store.sources.next_version(uow, source.tenant_id, source.source_id)
        created = replace(source, version=version)
        await self._check_room(uow.connection, source)
        if not await store.sources.add(uow, created):
            raise _taken(source)
        event = events.source_created(created, ids=self.ids, clock=self.clock)
        await self.outbox.add(uow, [event])
        return pb.CreateSourceResponse(source=events.source_message(created))

    async def _delete(self, uow: UnitOfWork, source: Source) -> pb.DeleteSourceResponse:
        version = await store.sources.next_version(uow, source.tenant_id, source.source_id)
        if not await store.sources.deactivate(uow, source):
            raise _missing(source.source_id)
        deleted = replace(source, version=version)
        event = events.source_deleted(deleted, ids=self.ids, clock=self.clock)
        await self.outbox.add(uow, [event])
        return pb.DeleteSourceResponse(source=events.source_message(deleted))

    async def _once(
        self,
        method: str,
        request: pb.CreateSourceRequest | pb.DeleteSourceRequest,
        work: Callable[[UnitOfWork], Awaitable[ResponseT]],
    ) -> ResponseT:
        return await self.idempotency.once(self.db, method=method, request=request, work=work)

    async def _seen(
        self,
        method: str,
        request: pb.CreateSourceRequest | pb.DeleteSourceRequest,
        response: type[ResponseT],
    ) -> ResponseT | None:
        """Return the first result of a repeated request, which gets it even when the source is away by now."""
        return await self.idempotency.answered(
            self.db, method=method, request=request, response_class=response
        )

    # ----- parts

    def _new(self, asked: source_pb2.Source, principal: Principal) -> Source:
        kind = kind_of(events.kind_name(asked.kind))
        rule = None
        if asked.HasField("customer_rule"):
            wanted = asked.customer_rule
            rule = CustomerRule(
                table=wanted.table,
                id_column=wanted.id_column,
                columns=dict(wanted.columns),
                visitor_column=wanted.visitor_column,
                version_column=wanted.version_column,
            )
        tables = tuple(asked.tables)
        check_rule(rule, tables)
        kind.check_url(asked.url)
        return Source(
            tenant_id=principal.tenant,
            source_id=asked.source_id,
            incarnation=self.ids.uuid7(),
            kind=kind.name,
            url=asked.url,
            system_id=asked.system_id,
            tables=tables,
            customer_rule=rule,
            snapshot=asked.snapshot,
            created_at=to_micros(self.clock.now()),
            version=0,
            state=State.SNAPSHOT if asked.snapshot else State.STREAMING,
        )

    async def _checked(self, source: Source) -> Source:
        """Return the source with the position that capture starts from. Raises SourceUnusable."""
        reader = open_reader(source, self.options)
        try:
            await reader.check()
            position = await reader.start_position()
        except SourceUnusable as error:
            if error.detail:
                get_logger().warning(
                    "source_refused", source=source.aggregate_id, error=error.detail
                )
            raise
        finally:
            await reader.close()
        cursor = reader.first_cursor() if source.snapshot else ""
        return replace(source, position=position, snapshot_cursor=cursor)

    async def _install(self, source: Source) -> None:
        reader = open_reader(source, self.options)
        try:
            await reader.install()
        finally:
            await reader.close()

    async def _check_free(self, source: Source) -> None:
        async with self.db.read() as connection:
            if await store.sources.get(connection, source.tenant_id, source.source_id):
                raise _taken(source)
            await self._check_room(connection, source)

    async def _check_room(self, connection: AsyncConnection, source: Source) -> None:
        tables = await store.sources.captured_tables(connection, source.tenant_id)
        if len(tables) >= self.max_sources:
            raise too_many("sources", self.max_sources, retry_after=60.0)
        if sum(tables) + len(source.tables) > self.max_tables:
            raise too_many("captured tables", self.max_tables, retry_after=60.0)
        live, _ = await store.sources.every(connection)
        _check_topics(source, live)

    async def _find(self, principal: Principal, source_id: str) -> Source:
        async with self.db.read() as connection:
            source = await store.sources.get(connection, principal.tenant, source_id)
        if source is None:
            raise _missing(source_id)
        return source


def _check_system(principal: Principal, system_id: str) -> None:
    if principal.role is Role.INTEGRATION and principal.system != system_id:
        raise PermissionDenied(
            f"an integration may only do this for its own system, {principal.system}"
        )


def _check_kind(principal: Principal, source: Source) -> None:
    if kind_of(source.kind).operators_only and principal.role is not Role.OPERATOR:
        raise PermissionDenied(f"only operators may create or delete sources of kind {source.kind}")


def _check_topics(source: Source, others: Sequence[Source]) -> None:
    """Kafka takes no two topics that differ in `.` and `_` only, as `shop`.`eu_orders` and `shop_eu`.`orders` do."""
    mine = {name.replace(".", "_"): name for name in _topic_names(source)}
    for other in others:
        for name in _topic_names(other):
            if mine.get(name.replace(".", "_"), name) != name:
                # Another tenant's is named to nobody.
                theirs = (
                    f"source {other.source_id}"
                    if other.tenant_id == source.tenant_id
                    else "another source"
                )
                raise InvalidArgument(
                    f"Kafka takes no topic of this name beside one of {theirs}: choose another source_id.",
                    field="source.source_id",
                )


def _topic_names(source: Source) -> list[str]:
    return [topics.changes_topic(source.source_id, table).name for table in source.tables]


def _taken(source: Source) -> AlreadyExists:
    return AlreadyExists(f"there is a source {source.source_id} already")


def _missing(source_id: str) -> NotFound:
    return NotFound(f"no source {source_id}", reason=error_reason_pb2.ERROR_REASON_SOURCE_NOT_FOUND)
