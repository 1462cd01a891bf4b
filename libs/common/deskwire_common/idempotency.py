"""Idempotency: a repeated call has no second effect and gets the first one's response.

The row is inserted first, in the use case's own transaction, and gets the response before the commit. So a
concurrent duplicate waits at the unique key and then returns the winner's response; when the first one failed, its
row is gone with its transaction and the duplicate does the work. Only successes are kept, for 24 hours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol, TypeVar, cast

import sqlalchemy as sa
from google.protobuf.descriptor_pool import Default as DefaultPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common import db as dbs
from deskwire_common.auth import current_principal
from deskwire_common.clock import Clock, SystemClock, to_micros
from deskwire_common.db import Database, UnitOfWork, WriteConflict
from deskwire_common.errors import InvalidArgument, RequestIdReused

#: How long a response is kept, in seconds.
KEEP: Final = 86_400
_PURGE_CHUNK: Final = 1_000
#: A method's full name, `deskwire.tickets.v1.TicketService/SolveTicket`.
_MAX_METHOD: Final = 160
_MAX_REQUEST_ID: Final = 128
#: A role and a subject, `visitor:auth0|5f7c`.
_MAX_PRINCIPAL: Final = 272

ResponseT = TypeVar("ResponseT", bound=Message)


class Request(Protocol):
    """A request message with a request_id."""

    @property
    def request_id(self) -> str:
        """The caller's own id of this call."""

    def SerializeToString(self, deterministic: bool = ...) -> bytes:  # noqa: N802 - protobuf's name
        """Return the encoded message."""


def idempotency_table(metadata: sa.MetaData) -> sa.Table:
    """The table `idempotency` of a service."""
    return sa.Table(
        "idempotency",
        metadata,
        sa.Column("tenant_id", dbs.Name, primary_key=True),
        sa.Column("principal", dbs.ascii_text(_MAX_PRINCIPAL), primary_key=True),
        sa.Column("method", dbs.ascii_text(_MAX_METHOD), primary_key=True),
        sa.Column("request_id", dbs.binary_text(_MAX_REQUEST_ID), primary_key=True),
        sa.Column("body_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("response_type", dbs.ascii_text(160), nullable=False),
        sa.Column("response", dbs.Blob, nullable=True),
        sa.Column("created_at", dbs.Micros, nullable=False, index=True),
    )


class IdempotencyStore:
    """Remembers the responses of calls by (tenant, principal, method, request_id)."""

    def __init__(self, metadata: sa.MetaData, clock: Clock | None = None) -> None:
        self.table = idempotency_table(metadata)
        self._clock = clock or SystemClock()

    async def execute(
        self,
        uow: UnitOfWork,
        *,
        method: str,
        request: Any,
        work: Callable[[], Awaitable[ResponseT]],
    ) -> ResponseT:
        """Do `work` in the transaction `uow`, or return the response of its first time.

        `request` is a message with `request_id`. Don't commit inside `work`; commit after this, also for a
        repeated call. Let errors of `work` pass, so that the transaction rolls back and the row with it. Call it
        first in the transaction: it takes no locks before its own, and `db.run` retries the deadlocks that remain.

        Raises InvalidArgument without a request_id, RequestIdReused when an earlier call had the id with another body.
        """
        row = self._row(method, request)
        if await dbs.insert_if_absent(uow, self.table, row):
            response = await work()
            statement = (
                sa.update(self.table)
                .where(*self._is(row))
                .values(
                    response_type=response.DESCRIPTOR.full_name,
                    response=response.SerializeToString(deterministic=True),
                )
            )
            await uow.execute(statement)
            return response
        found = await self._find(uow.connection, row)
        if found is None:
            # The row was purged between the two statements: the next attempt inserts.
            raise WriteConflict("a repeated call met the clean-up of its first one; try again")
        return cast("ResponseT", found)

    async def once(
        self,
        db: Database,
        *,
        method: str,
        request: Any,
        work: Callable[[UnitOfWork], Awaitable[ResponseT]],
    ) -> ResponseT:
        """Do `work` in a transaction of its own, once per request_id. Raises the errors of `execute`.

        `work` may run several times, each in a new transaction, until one is committed. The next attempt sees a row
        that another caller inserted meanwhile.
        """

        async def attempt(uow: UnitOfWork) -> ResponseT:
            try:
                return await self.execute(
                    uow, method=method, request=request, work=lambda: work(uow)
                )
            except IntegrityError as error:
                if dbs.is_unique_violation(error):
                    raise WriteConflict("two calls made the same thing; try again") from error
                raise

        return await db.run(attempt)

    async def answered(
        self, db: Database, *, method: str, request: Any, response_class: type[ResponseT]
    ) -> ResponseT | None:
        """The response that a request got before; None when it is new or still under way. Raises like `execute`.

        For use cases that call another system before the transaction, which a repeated call must not do again.
        """
        async with db.read() as connection:
            found = await self._find(connection, self._row(method, request))
        return found if isinstance(found, response_class) else None

    async def purge(self, db: Database, *, keep: float = KEEP) -> int:
        """Forget responses older than `keep` seconds, in small transactions; return how many."""
        before = to_micros(self._clock.now()) - int(keep * 1_000_000)
        keys = [self.table.c[name] for name in self._keys]
        total = 0
        while True:

            async def chunk(uow: UnitOfWork) -> int:
                old = await uow.connection.execute(
                    sa.select(*keys).where(self.table.c.created_at < before).limit(_PURGE_CHUNK)
                )
                rows = [{f"b_{name}": row[i] for i, name in enumerate(self._keys)} for row in old]
                if rows:
                    match = (self.table.c[name] == sa.bindparam(f"b_{name}") for name in self._keys)
                    await uow.execute(sa.delete(self.table).where(*match), rows)
                return len(rows)

            deleted = await db.run(chunk)
            total += deleted
            if deleted < _PURGE_CHUNK:
                return total

    _keys: Final = ("tenant_id", "principal", "method", "request_id")

    def _row(self, method: str, request: Request) -> dict[str, Any]:
        principal = current_principal()
        # MariaDB compares "1" and "1 " as equal.
        if (
            not 0
            < len(request.request_id.rstrip(" "))
            == len(request.request_id)
            <= _MAX_REQUEST_ID
        ):
            raise InvalidArgument(
                f"request_id must have 1 to {_MAX_REQUEST_ID} characters, the last one no blank",
                field="request_id",
            )
        return {
            "tenant_id": principal.tenant,
            # Two roles may share a subject; they are two callers.
            "principal": f"{principal.role.value}:{principal.subject}",
            "method": method,
            "request_id": request.request_id,
            "body_hash": hashlib.sha256(request.SerializeToString(deterministic=True)).digest(),
            "response_type": "",
            "response": None,
            "created_at": to_micros(self._clock.now()),
        }

    def _is(self, row: Mapping[str, Any]) -> list[sa.ColumnElement[bool]]:
        return [self.table.c[name] == row[name] for name in self._keys]

    async def _find(self, connection: AsyncConnection, row: Mapping[str, Any]) -> Message | None:
        """The response of an equal request. Raises RequestIdReused."""
        c = self.table.c
        statement = sa.select(c.body_hash, c.response_type, c.response).where(*self._is(row))
        found = (await connection.execute(statement)).one_or_none()
        if found is None:
            return None
        if bytes(found.body_hash) != row["body_hash"]:
            raise RequestIdReused(
                f"request_id {row['request_id']!r} was used with another body",
                metadata={"method": row["method"]},
            )
        message_class = GetMessageClass(DefaultPool().FindMessageTypeByName(found.response_type))
        stored: Message = message_class()
        stored.ParseFromString(bytes(found.response))
        return stored
