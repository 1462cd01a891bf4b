"""Adapters: gRPC servers of others that speak SystemAdapterService. They get no token of deskwire's.

Their addresses come from tenants: each connection is made to addresses that the operator's rules allow.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import grpc

from deskwire.adapters.v1 import system_adapter_service_pb2 as pb
from deskwire.adapters.v1 import system_adapter_service_pb2_grpc
from deskwire.common.v1 import error_reason_pb2
from deskwire_common.clock import Clock, to_micros
from deskwire_common.errors import FailedPrecondition, Unavailable, from_rpc_error
from deskwire_common.logging import get_logger
from deskwire_common.quota import Threads
from deskwire_common.rpc import Tls, make_channel
from deskwire_common.targets import TargetRefused, Targets, grpc_target
from deskwire_events.domain import Outcome, Result, Subscription, outcome_of
from deskwire_events.sinks.port import (
    MAX_BATCH,
    Away,
    Faulty,
    Outgoing,
    Sink,
    TooLarge,
    clean,
)
from deskwire_events.spine import Carried

ASK_SECONDS: Final = 3.0
"""How long Schema and Auth may take."""
PUSH_SECONDS: Final = 30.0
NOT_THERE: Final = "no adapter answers there that this hub may call"
"""All that a tenant is told, whether a rule forbids the address, nothing answers, or what answers is no adapter."""
_ITEM_OVERHEAD: Final = 96
"""Bytes of a PushItem beside the event and its JSON: attempt, traceparent, tags."""
_RESOLVING: Final = Threads("resolve", 32, per_tenant=4)
"""A tenant's slow name server holds a thread for half a minute, for which no commit and no other tenant may wait."""
# As gRPC for C, Go, Java, .NET, Node.js and Rust say that a message is over a limit.
_IS_SIZE: Final = re.compile(
    r"^(RESOURCE_EXHAUSTED|OUT_OF_RANGE): .*(larger than max|exceeds (the )?max|too large)",
    re.IGNORECASE,
)
_SESSION_CODES: Final = frozenset(
    {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
)


@dataclass(frozen=True, slots=True)
class Schema:
    """What an adapter says it can."""

    program: str
    event_types: tuple[str, ...]
    max_batch: int


class AdapterSink(Sink):
    """One adapter's SystemAdapterService."""

    def __init__(
        self, subscription: Subscription, *, targets: Targets, tls: Tls | None, clock: Clock
    ) -> None:
        self._target = subscription.target
        self._tenant = subscription.tenant
        self._credentials = dict(subscription.secrets)
        self._targets = targets
        self._tls = tls
        self._clock = clock
        self._channel: grpc.aio.Channel | None = None
        self._session: str | None = None
        self._expires: int | None = None
        self._schema: Schema | None = None

    def measure(self, carried: Carried) -> int:
        """Both views: a PushItem has the event and its JSON."""
        return len(carried.proto) + len(carried.json) + _ITEM_OVERHEAD

    async def introduce(self) -> Schema:
        """Schema and Auth of an adapter that is being registered.

        Raises FailedPrecondition (ADAPTER_UNUSABLE): what it answered when it proved to be an adapter, else one text.
        """
        try:
            schema = await self.schema()
            await self.authenticate()
        except Unavailable as error:
            if isinstance(error, Away):
                get_logger().warning("adapter_away", error=error.detail)
            raise FailedPrecondition(
                f"the adapter can't be used: {error.message}",
                reason=error_reason_pb2.ERROR_REASON_ADAPTER_UNUSABLE,
            ) from error
        return schema

    async def schema(self) -> Schema:
        """Connect, and ask what it can. Raises Away unless an adapter answers."""
        try:
            async with asyncio.timeout(2 * ASK_SECONDS):
                stub = await self._connect()
                request = pb.SchemaRequest(tenant_id=self._tenant)
                answer = await stub.Schema(request, timeout=ASK_SECONDS)
        except grpc.aio.AioRpcError as error:
            asked = from_rpc_error(error).retry_after
            raise Away(NOT_THERE, detail=_told(error), retry_after=asked) from error
        except (TargetRefused, TimeoutError) as error:
            detail = str(error) or "its name isn't resolved in time"
            raise Away(NOT_THERE, detail=detail) from error
        self._schema = Schema(
            program=clean(answer.adapter),
            event_types=tuple(answer.event_types),
            max_batch=min(answer.max_batch or MAX_BATCH, MAX_BATCH),
        )
        self.max_batch = self._schema.max_batch
        return self._schema

    async def authenticate(self) -> None:
        """Open a session. Raises Away and Faulty."""
        request = pb.AuthRequest(tenant_id=self._tenant, credentials=self._credentials)
        answer = await self._call(self._stub.Auth(request, timeout=ASK_SECONDS))
        self._session = answer.session
        self._expires = (
            answer.expire_time.ToMicroseconds() if answer.HasField("expire_time") else None
        )

    async def ready(self) -> None:
        """Schema after a lost connection, Auth where there is no session: then it can push."""
        if self._schema is None:
            await self.schema()
        expired = self._expires is not None and self._expires <= to_micros(self._clock.now())
        if self._session is None or expired:
            try:
                await self.authenticate()
            except Faulty as error:
                # Whatever the reason: without a session nothing can be pushed, and no event is to blame.
                raise Away(error.message, retry_after=error.retry_after) from error

    async def deliver(self, batch: Sequence[Outgoing]) -> Sequence[Result]:
        """Push; what comes back because the session ended is pushed once more, in a fresh one."""
        await self.ready()
        results = list(await self._push(batch))
        again = [n for n, each in enumerate(results) if each.outcome is Outcome.AUTH_EXPIRED]
        if again:
            self._session = None
            await self.ready()
            repeated = await self._push([batch[n] for n in again])
            for n, result in zip(again, repeated, strict=True):
                results[n] = result
            if any(each.outcome is Outcome.AUTH_EXPIRED for each in repeated):
                self._session = None
        return results

    def forget(self) -> None:
        """The connection is lost: resolve its name and begin with Schema again."""
        self._schema = self._session = None

    async def close(self) -> None:
        """End the connection."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _connect(self) -> Any:
        """A channel to the addresses that the name stands for now; gRPC resolves nothing itself."""
        await self.close()
        host, _, port = self._target.rpartition(":")
        found = await _RESOLVING.run(
            self._tenant, partial(self._targets.addresses, host, int(port))
        )
        # bare: retries, deadlines and traces of pushes are the hub's own.
        self._channel = make_channel(
            grpc_target(found, int(port)),
            tls=self._tls,
            bare=True,
            server_name=host.removeprefix("[").removesuffix("]"),
            authority=self._target,
        )
        return self._stub

    @property
    def _stub(self) -> Any:
        if self._channel is None:
            raise Away(NOT_THERE, detail="not connected")
        return system_adapter_service_pb2_grpc.SystemAdapterServiceStub(self._channel)

    async def _push(self, batch: Sequence[Outgoing]) -> list[Result]:
        first = batch[0].traceparent
        metadata = (("traceparent", first),) if first else ()
        items = [
            pb.PushItem(
                event=each.event,
                json=each.json.decode(),
                attempt=each.attempt,
                traceparent=each.traceparent,
            )
            for each in batch
        ]
        request = pb.PushRequest(session=self._session or "", items=items)
        try:
            answer = await self._call(
                self._stub.Push(request, timeout=PUSH_SECONDS, metadata=metadata)
            )
        except Faulty as error:
            if _IS_SIZE.search(error.message):
                raise TooLarge(error.message) from error
            raise
        told = [result.event_id for result in answer.results]
        if told != [each.event_id for each in batch]:
            raise Faulty(
                f"the adapter answered {len(told)} results for {len(batch)} events, or for others"
            )
        return [
            Result(
                outcome=outcome_of(result.outcome),
                detail=clean(result.detail),
                retry_after=result.retry_after.ToMicroseconds() / 1e6
                if result.HasField("retry_after")
                else None,
            )
            for result in answer.results
        ]

    async def _call(self, call: Awaitable[Any]) -> Any:
        """A call of an adapter that answered Schema. Raises Away, or Faulty with its own words."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            asked = from_rpc_error(error).retry_after
            if error.code() in _SESSION_CODES:
                self._session = None
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self.forget()
                raise Away(NOT_THERE, detail=_told(error), retry_after=asked) from error
            raise Faulty(_told(error), retry_after=asked) from error


def _told(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {clean(error.details() or '')}"
