"""Forwarding: a call that needs a conversation's owner is passed on to it, once, as its caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_status import rpc_status

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_chat.domain.conversations import partition_of
from deskwire_chat.owners.errors import NotOwner
from deskwire_chat.owners.ownership import Ownership
from deskwire_common import rpc, telemetry
from deskwire_common.errors import DeskwireError, from_rpc_error, stopping
from deskwire_common.metrics import METRICS
from deskwire_common.ownership import Member

FORWARDED: Final = "deskwire-forwarded"
"""Metadata of a forwarded call, which isn't forwarded a second time."""
_PATIENCE: Final = 5.0
"""How many seconds a call waits while no process owns the partition."""
_AGAIN: Final = 0.2
_CUT: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
"""What gRPC says of a call whose server, or the way to it, has gone."""
_KEPT: Final = ("authorization", "x-request-id")

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


def is_forwarded(context: Any) -> bool:
    """Whether another chat process forwarded this call."""
    return bool(rpc.metadata_value(context.invocation_metadata(), FORWARDED))


def forwarding(context: Any) -> grpc.aio.Metadata:
    """Return the metadata with which a caller's call is forwarded."""
    metadata = grpc.aio.Metadata((FORWARDED, "1"))
    for name in _KEPT:
        value = rpc.metadata_value(context.invocation_metadata(), name)
        if value:
            metadata.add(name, value)
    traceparent = telemetry.current_traceparent()
    if traceparent:
        metadata.add("traceparent", traceparent)
    return metadata


def was_not_taken(error: grpc.aio.AioRpcError) -> bool:
    """Whether the called process isn't the owner or can't be reached: another one may be the owner in a moment."""
    # A status without details comes from the transport: the suite's own have some.
    if rpc_status.from_call(error) is None:  # type: ignore[arg-type] # as its own docstring does
        return error.code() in _CUT
    return from_rpc_error(error).reason == reasons.ERROR_REASON_NOT_OWNER


class Peers:
    """The other chat processes."""

    def __init__(self, ownership: Ownership, connect: Callable[[str], grpc.aio.Channel]) -> None:
        """`connect` makes bare channels: a forwarded call has its caller's token and deadline."""
        self._ownership = ownership
        self._connect = connect
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._streams: set[Any] = set()
        self._stopping = False

    def channel(self, owner: Member) -> grpc.aio.Channel:
        """Return the channel to a process."""
        channel = self._channels.get(owner.address)
        if channel is None:
            channel = self._channels[owner.address] = self._connect(owner.address)
        return channel

    def elsewhere(self, conversation_id: str) -> Member | None:
        """Return the other process that owns a conversation; None: this one does, or for a moment none does."""
        number = partition_of(conversation_id.lower())
        if self._ownership.term_of(number):
            return None
        owner = self._ownership.owner_of(number)
        return None if owner is None or owner.address == self._ownership.address else owner

    async def drain(self) -> None:
        """End the forwarded streams."""
        self._stopping = True
        for call in list(self._streams):
            call.cancel()

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            await channel.close()

    async def unary(
        self,
        method: str,
        conversation_id: str,
        request: RequestT,
        context: Any,
        local: Callable[[RequestT], Awaitable[ResponseT]],
        response: type[ResponseT],
    ) -> ResponseT:
        """Serve a call at the conversation's owner. Raises what the call raises there; NotOwner when there is no owner.

        The call may be tried more than once while the owner changes, as calls are idempotent.
        """
        number = partition_of(conversation_id.lower())
        was_forwarded = is_forwarded(context)
        until = asyncio.get_running_loop().time() + _PATIENCE
        while True:
            try:
                if self._ownership.term_of(number):
                    return await local(request)
                owner = self.elsewhere(conversation_id)
                if owner is not None and not was_forwarded:
                    return await self._pass_on(owner, method, request, context, response)
            except NotOwner:
                # The owner is changing: the partition may have another one in a moment.
                pass
            if was_forwarded or asyncio.get_running_loop().time() >= until:
                raise NotOwner
            await self._ownership.wait_for_change(_AGAIN)

    async def owner(self, conversation_id: str, context: Any) -> Member | None:
        """Return the other process that owns a conversation; None: this one does. Raises NotOwner when none does."""
        number = partition_of(conversation_id.lower())
        until = asyncio.get_running_loop().time() + _PATIENCE
        while not self._ownership.term_of(number):
            if is_forwarded(context) or asyncio.get_running_loop().time() >= until:
                raise NotOwner
            if (owner := self.elsewhere(conversation_id)) is not None:
                return owner
            await self._ownership.wait_for_change(_AGAIN)
        return None

    async def stream(
        self, method: str, owner: Member, request: Message, context: Any, response: type[ResponseT]
    ) -> AsyncGenerator[ResponseT]:
        """Forward a call with a stream of responses. Raises what ends it there; NotOwner when that isn't known."""
        if self._stopping:
            raise stopping()
        METRICS.calls_forwarded.labels(method.rpartition("/")[2]).inc()
        call: Any = self.channel(owner).unary_stream(
            method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )(request, metadata=forwarding(context), timeout=context.time_remaining())
        self._streams.add(call)
        try:
            async for each in call:
                yield each
        except asyncio.CancelledError:
            # `drain` ends the call; only what cancels this task itself goes on.
            me = asyncio.current_task()
            if self._stopping and not (me and me.cancelling()):
                raise stopping() from None
            raise
        except grpc.aio.AioRpcError as error:
            raise _error_of(error) from error
        finally:
            self._streams.discard(call)
            call.cancel()

    async def _pass_on(
        self,
        owner: Member,
        method: str,
        request: RequestT,
        context: Any,
        response: type[ResponseT],
    ) -> ResponseT:
        METRICS.calls_forwarded.labels(method.rpartition("/")[2]).inc()
        call: Any = self.channel(owner).unary_unary(
            method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        seconds = context.time_remaining()
        timeout = rpc.DEADLINE if seconds is None else seconds
        try:
            result: ResponseT = await call(request, metadata=forwarding(context), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise _error_of(error) from error
        return result


def _error_of(error: grpc.aio.AioRpcError) -> DeskwireError:
    """Return the error that a forwarded call raises here."""
    return NotOwner() if was_not_taken(error) else from_rpc_error(error)
