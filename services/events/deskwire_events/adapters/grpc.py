"""Adapters that are gRPC servers of others. They get no token of deskwire's.

Their addresses come from tenants: each connection is made to addresses that the operator's rules allow.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc

from deskwire.adapters.v1 import system_adapter_service_pb2 as pb
from deskwire.adapters.v1 import system_adapter_service_pb2_grpc
from deskwire_common.clock import Clock, to_micros
from deskwire_common.errors import Unavailable, from_rpc_error
from deskwire_common.rpc import Tls, make_channel
from deskwire_common.targets import TargetRefused, Targets, grpc_target
from deskwire_events.adapters.port import (
    MAX_BATCH,
    AdapterAway,
    AdapterPort,
    Result,
    Schema,
    TooLarge,
    clean,
)
from deskwire_events.domain import Adapter, outcome_of

ASK_SECONDS: Final = 3.0
"""How long Schema and Auth may take."""
PUSH_SECONDS: Final = 30.0
_RESOLVING: Final = ThreadPoolExecutor(32, thread_name_prefix="resolve")
"""Threads of their own: a tenant's slow name server holds one for half a minute, and commits must not wait for it."""
# As gRPC for C, Go, Java, .NET, Node.js and Rust say that a message is over a limit.
_IS_SIZE: Final = re.compile(
    r"^(RESOURCE_EXHAUSTED|OUT_OF_RANGE): .*(larger than max|exceeds (the )?max|too large)",
    re.IGNORECASE,
)


class GrpcAdapter(AdapterPort):
    """One adapter's SystemAdapterService. A call that fails as a whole raises Unavailable."""

    def __init__(
        self, adapter: Adapter, *, targets: Targets, tls: Tls | None, clock: Clock
    ) -> None:
        self._target = adapter.target
        self._targets = targets
        self._tls = tls
        self._channel: grpc.aio.Channel | None = None
        self._tenant = adapter.tenant
        self._credentials = dict(adapter.credentials)
        self._clock = clock
        self._session: str | None = None
        self._expires: int | None = None
        self._schema: Schema | None = None

    async def schema(self) -> Schema:
        """Connect, and ask what it can. Raises AdapterAway unless an adapter answers."""
        try:
            async with asyncio.timeout(2 * ASK_SECONDS):
                stub = await self._connect()
                request = pb.SchemaRequest(tenant_id=self._tenant)
                answer = await stub.Schema(request, timeout=ASK_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise AdapterAway(
                _told(error), retry_after=from_rpc_error(error).retry_after
            ) from error
        except (TargetRefused, TimeoutError) as error:
            raise AdapterAway(str(error) or "its name isn't resolved in time") from error
        self._schema = Schema(
            program=clean(answer.adapter),
            event_types=tuple(answer.event_types),
            max_batch=min(answer.max_batch or MAX_BATCH, MAX_BATCH),
        )
        return self._schema

    async def _connect(self) -> Any:
        """A channel to the addresses that the name stands for now; gRPC resolves nothing itself."""
        await self.close()
        host, _, port = self._target.rpartition(":")
        found = await asyncio.get_running_loop().run_in_executor(
            _RESOLVING, self._targets.addresses, host, int(port)
        )
        # bare: retries, deadlines and traces of pushes are the hub's own.
        self._channel = make_channel(
            grpc_target(found, int(port)),
            tls=self._tls,
            bare=True,
            server_name=host.removeprefix("[").removesuffix("]"),
            authority=self._target,
        )
        return system_adapter_service_pb2_grpc.SystemAdapterServiceStub(self._channel)

    @property
    def _stub(self) -> Any:
        if self._channel is None:
            raise AdapterAway("not connected")
        return system_adapter_service_pb2_grpc.SystemAdapterServiceStub(self._channel)

    async def authenticate(self) -> None:
        """Open a session."""
        request = pb.AuthRequest(tenant_id=self._tenant, credentials=self._credentials)
        answer = await _call(self._stub.Auth(request, timeout=ASK_SECONDS))
        self._session = answer.session
        self._expires = (
            answer.expire_time.ToMicroseconds() if answer.HasField("expire_time") else None
        )

    async def ready(self) -> Schema:
        """Schema after a lost connection, Auth where there is no session: then it can push."""
        schema = self._schema or await self.schema()
        expired = self._expires is not None and self._expires <= to_micros(self._clock.now())
        if self._session is None or expired:
            await self.authenticate()
        return schema

    def forget_session(self) -> None:
        """The session is over."""
        self._session = None

    def forget(self) -> None:
        """The connection is lost: resolve its name and begin with Schema again."""
        self._schema = None
        self._session = None

    async def push(self, items: Sequence[pb.PushItem], traceparent: str) -> list[Result]:
        """Push; one result per item, in their order. Raises TooLarge, Unavailable."""
        metadata = (("traceparent", traceparent),) if traceparent else ()
        request = pb.PushRequest(session=self._session or "", items=items)
        try:
            answer = await _call(self._stub.Push(request, timeout=PUSH_SECONDS, metadata=metadata))
        except Unavailable as error:
            if _IS_SIZE.search(error.message):
                raise TooLarge(error.message) from error
            raise
        told = [result.event_id for result in answer.results]
        if told != [item.event.event_id for item in items]:
            raise Unavailable(
                f"the adapter answered {len(told)} results for {len(items)} events, or for others"
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

    async def close(self) -> None:
        """End the connection."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


async def _call(call: Awaitable[Any]) -> Any:
    """A call of an adapter that answered Schema. Raises Unavailable: with its own words, unless it is gone."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        retry_after = from_rpc_error(error).retry_after
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            raise AdapterAway(_told(error), retry_after=retry_after) from error
        raise Unavailable(
            _told(error), retry_after=retry_after, metadata={"code": error.code().name}
        ) from error


def _told(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {clean(error.details() or '')}"
