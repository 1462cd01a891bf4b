"""Adapters: gRPC servers that speak SystemAdapterService. They get no token of deskwire's."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
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
from deskwire_common.sealing import SealBroken, Sealer
from deskwire_events.domain import Outcome, Result, Subscription, outcome_of
from deskwire_events.secret_refs import SecretRefs, SecretRefused
from deskwire_events.sinks.names import LOOK_UPS
from deskwire_events.sinks.port import (
    MAX_BATCH,
    Away,
    Faulty,
    Outgoing,
    Sink,
    TooLarge,
    clean,
    opened,
)
from deskwire_events.sinks.ways import NOT_THERE, OpenWay
from deskwire_events.spine import Carried

ASK_SECONDS: Final = 3.0
"""How long Schema and Auth may take."""
PUSH_SECONDS: Final = 30.0
_EARLY: Final = 60.0
"""Seconds before a session's end in which a fresh one is opened; a tenth of its life where that is less."""
_ITEM_OVERHEAD: Final = 96
"""Bytes of a PushItem beside the event and its JSON: attempt, traceparent, tags."""
#: A shorter secret is in any text by chance.
_LEAST_HIDDEN: Final = 4
# An answer that is too large is the adapter's fault, not the size of what was pushed.
_IS_ANSWER: Final = re.compile(r"CLIENT: Received|Sent message")
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
    config_schema: str = ""


class AdapterSink(Sink):
    """One adapter's SystemAdapterService."""

    def __init__(
        self,
        subscription: Subscription,
        *,
        open_way: OpenWay,
        secrets: SecretRefs,
        sealer: Sealer,
        clock: Clock,
    ) -> None:
        self._subscription = subscription
        self._tenant = subscription.tenant
        self._sealer = sealer
        self._config = subscription.config
        self._references = dict(subscription.secret_refs)
        self._way = open_way(subscription)
        self._secrets = secrets
        self._clock = clock
        self._hidden: list[str] = []
        self._channel: grpc.aio.Channel | None = None
        self._session: str | None = None
        self._renew_at: int | None = None
        self._schema: Schema | None = None

    def measure(self, carried: Carried) -> int:
        """Both views: a PushItem has the event and its JSON."""
        return len(carried.proto) + len(carried.json) + _ITEM_OVERHEAD

    async def introduce(self, accept: Callable[[Schema], None]) -> Schema:
        """Schema, Auth and Check of an adapter that is being registered; `accept` may refuse what its Schema says.

        Raises FailedPrecondition (ADAPTER_UNUSABLE): what it answered when it proved to be an adapter, else one text;
        and what `accept` raises.
        """
        try:
            schema = await self.schema()
            accept(schema)
            await self.authenticate()
            await self.check()
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
            async with asyncio.timeout(self._way.seconds):
                await self.close()
                self._channel = await self._way.open()
            request = pb.SchemaRequest(tenant_id=self._tenant)
            answer = await self._stub.Schema(request, timeout=ASK_SECONDS)
        except grpc.aio.AioRpcError as error:
            asked = from_rpc_error(error).retry_after
            raise Away(NOT_THERE, detail=self._told(error), retry_after=asked) from error
        except TimeoutError as error:
            raise Away(NOT_THERE, detail="it isn't reached in time") from error
        self._schema = Schema(
            program=clean(answer.adapter),
            event_types=tuple(answer.event_types),
            max_batch=min(answer.max_batch or MAX_BATCH, MAX_BATCH),
            config_schema=answer.config_schema,
        )
        self.max_batch = self._schema.max_batch
        return self._schema

    async def authenticate(self) -> None:
        """Open a session, with secrets as they are now. Raises Away and Faulty."""
        try:
            found = await LOOK_UPS.run(
                self._tenant, partial(self._secrets.read, self._tenant, self._references)
            )
        except SecretRefused as error:
            raise Away(f"the secret {error.name} can't be used", detail=str(error)) from error
        try:
            credentials = {**opened(self._subscription, self._sealer), **found}
        except SealBroken as error:
            raise Away("its credentials can't be read at the moment", detail=str(error)) from error
        self._hidden = [each for each in credentials.values() if len(each) >= _LEAST_HIDDEN]
        request = pb.AuthRequest(
            tenant_id=self._tenant, credentials=credentials, config=self._config
        )
        answer = await self._call(self._stub.Auth(request, timeout=ASK_SECONDS))
        self._session = answer.session
        self._renew_at = None
        if answer.HasField("expire_time"):
            expires, now = answer.expire_time.ToMicroseconds(), to_micros(self._clock.now())
            self._renew_at = expires - int(min(_EARLY * 1e6, max(0, expires - now) / 10))

    async def check(self) -> None:
        """Ask whether the system would take events. Raises Faulty when not; adapters that can't tell are believed."""
        request = pb.CheckRequest(session=self._session or "")
        try:
            answer = await self._stub.Check(request, timeout=ASK_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return
            raise Faulty(self._told(error)) from error
        if not answer.healthy:
            raise Faulty(self._clean(answer.detail) or "it says that it isn't healthy")

    async def ready(self) -> None:
        """Schema after a lost connection, Auth where there is no session: then it can push."""
        if self._way.lost:
            self.forget()
        if self._schema is None:
            await self.schema()
        ends = self._renew_at is not None and self._renew_at <= to_micros(self._clock.now())
        if self._session is None or ends:
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
            if _IS_SIZE.search(error.message) and not _IS_ANSWER.search(error.message):
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
                detail=self._clean(result.detail),
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
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                await self._way.late()
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self.forget()
                ended = await self._way.ended()
                if ended:
                    raise Faulty(ended) from error
                raise Away(NOT_THERE, detail=self._told(error), retry_after=asked) from error
            raise Faulty(self._told(error), retry_after=asked) from error

    def _told(self, error: grpc.aio.AioRpcError) -> str:
        return f"{error.code().name}: {self._clean(error.details() or '')}"

    def _clean(self, text: str) -> str:
        """A text of the adapter's without what it was told in confidence."""
        for secret in self._hidden:
            text = text.replace(secret, "***")
        return clean(text)
