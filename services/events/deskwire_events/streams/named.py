"""Streams of named subscriptions: at the owner of the subscription's slot, or passed on to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc

from deskwire.common.v1 import error_reason_pb2
from deskwire.events.v1 import event_hub_service_pb2 as pb
from deskwire_common.auth import Principal, Role
from deskwire_common.clock import Clock
from deskwire_common.db import Database
from deskwire_common.errors import InvalidArgument, PermissionDenied, Unavailable, from_rpc_error
from deskwire_common.pagination import ANSWER_BYTES
from deskwire_events import domain, store
from deskwire_events.domain import READERS, Outcome, Subscription
from deskwire_events.running import Consumer, Keeper, Streamer
from deskwire_wire.protobytes import nested, number

SUBSCRIBE: Final = "/deskwire.events.v1.EventHubService/Subscribe"
#: In the metadata of a stream that was passed on: it is not passed on again.
PASSED_ON: Final = "deskwire-passed-on"
#: What stands for no limit of credit.
_MANY: Final = 1 << 40
_WITHIN: Final = 60.0
_EVENTS: Final = b"\x12"
_DELIVERY, _ATTEMPT = b"\x30", b"\x38"

OwnerOf = Callable[[int], str | None]
"""The address of the process that owns a slot: "" for this one, None when nobody is known."""
OpenChannel = Callable[[str], grpc.aio.Channel]


@dataclass(frozen=True, slots=True)
class Named:
    """The way to named subscriptions."""

    db: Database
    keeper: Keeper
    clock: Clock
    owner_of: OwnerOf
    channel: OpenChannel

    async def find(self, principal: Principal, start: pb.SubscribeStart) -> Subscription:
        """The subscription of a start. Raises InvalidArgument, NotFound, FailedPrecondition, PermissionDenied."""
        if start.WhichOneof("position") or any(
            (start.event_types, start.subjects, start.attributes, start.cel)
        ):
            raise InvalidArgument(
                "a named subscription has its own place and filter", field="start.subscription_id"
            )
        async with self.db.read() as connection:
            found = await store.subscriptions.get(
                connection, principal.tenant, start.subscription_id
            )
        if found is None or found.removed or found.kind is not domain.SinkKind.STREAM:
            raise domain.no_subscription(start.subscription_id)
        domain.check_system(found.system_id, principal.system)
        domain.check_running(found)
        _check_role(principal.role, found)
        return found

    async def streamer(self, subscription: Subscription) -> Streamer | None:
        """The subscription at work; None when another process has its slot. Raises Unavailable."""
        if self.owner_of(subscription.slot) != "":
            return None
        found = await self.keeper.opened(subscription.incarnation)
        if not isinstance(found, Streamer) or found.halted:
            raise _elsewhere()
        return found

    async def pass_on(
        self,
        subscription: Subscription,
        first: pb.SubscribeRequest,
        requests: AsyncIterator[pb.SubscribeRequest],
        context: Any,
    ) -> AsyncGenerator[bytes, None]:
        """Pass a stream on to the owner, as its caller. Raises what the owner raises, and Unavailable."""
        metadata = dict(context.invocation_metadata())
        address = self.owner_of(subscription.slot)
        if not address or PASSED_ON in metadata:
            raise _elsewhere()
        sent = [
            (name, text)
            for name, text in metadata.items()
            if name in {"authorization", "traceparent"}
        ]
        call: Any = self.channel(address).stream_stream(SUBSCRIBE)(
            metadata=[*sent, (PASSED_ON, "1")]
        )

        async def send() -> None:
            await call.write(first.SerializeToString())
            async for request in requests:
                await call.write(request.SerializeToString())
            await call.done_writing()

        sending = asyncio.create_task(send(), name="subscribe-passed-on")
        try:
            while True:
                answer = await call.read()
                if answer is grpc.aio.EOF:
                    return
                yield answer
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            sending.cancel()
            call.cancel()
            await asyncio.gather(sending, return_exceptions=True)


class NamedStream:
    """One stream of a subscription that this process works on."""

    def __init__(self, streamer: Streamer, start: pb.SubscribeStart, wake: asyncio.Event) -> None:
        within = (
            start.ack_within.ToMilliseconds() / 1000 if start.HasField("ack_within") else _WITHIN
        )
        room = (start.credit or _MANY, start.credit_bytes or _MANY)
        self._limited = bool(start.credit), bool(start.credit_bytes)
        self._json = start.json
        self._streamer = streamer
        self._consumer = Consumer(within, room, wake)
        streamer.join(self._consumer)

    def close(self) -> None:
        """What it hasn't answered goes to others."""
        self._streamer.leave(self._consumer)

    def check(self) -> None:
        """Raises Unavailable when the subscription ends here: it has changed, or moved to another process."""
        if self._consumer.over:
            raise _elsewhere()

    @property
    def waiting(self) -> bool:
        """Whether an event could be sent now."""
        return bool(self._consumer.ready)

    def answer(self) -> tuple[bytes, int]:
        """A SubscribeResponse of what is ready, as far as an answer reaches; and how many events it has."""
        ready = self._consumer.ready
        parts: list[bytes] = []
        room = ANSWER_BYTES
        while ready:
            delivery, item = ready[0]
            if delivery in self._consumer.flying:
                view = item.body.view(json=self._json)
                told = number(_DELIVERY, delivery) + number(_ATTEMPT, item.attempts)
                # The view may have six times the bytes of the record.
                room -= len(view)
                if parts and room < 0:
                    break
                parts.append(nested(_EVENTS, view + told))
            ready.popleft()
        return b"".join(parts), len(parts)

    def take(self, request: pb.SubscribeRequest) -> None:
        """A later request of the stream. Raises InvalidArgument for another start."""
        streamer, consumer = self._streamer, self._consumer
        match request.WhichOneof("kind"):
            case "credit":
                events, size = consumer.room
                more = request.credit
                consumer.room = (
                    events + (more.events if self._limited[0] else 0),
                    size + (more.bytes if self._limited[1] else 0),
                )
                streamer.work.set()
            case "ack":
                streamer.ack(consumer, list(request.ack.deliveries))
            case "nack":
                self._nack(request.nack)
            case "extend":
                by = request.extend.by.ToMilliseconds() / 1000
                streamer.extend(consumer, list(request.extend.deliveries), by)
            case _:
                raise InvalidArgument("a stream has one start", field="kind")

    def _nack(self, nack: pb.SubscribeNack) -> None:
        streamer, consumer, numbers = self._streamer, self._consumer, list(nack.deliveries)
        match nack.WhichOneof("then"):
            case "reject":
                streamer.finish(consumer, numbers, Outcome.REJECTED, nack.detail)
            case "skip":
                streamer.finish(consumer, numbers, Outcome.SKIPPED, nack.detail)
            case _:
                after = nack.retry_after.ToMilliseconds() / 1000
                streamer.retry(consumer, numbers, after, nack.detail or "nack")


def _check_role(role: Role, subscription: Subscription) -> None:
    """Raises PermissionDenied unless a role may read all that a subscription reads."""
    selection = subscription.selection
    names = [*selection.names, *([domain.CHANGES] if selection.changes else [])]
    refused = [name for name in names if role not in READERS[name]]
    if refused:
        raise PermissionDenied(f"{role.value}s don't get events of {', '.join(refused)}")


def _elsewhere() -> Unavailable:
    return Unavailable(
        "the subscription has changed, or moves to another process; subscribe again",
        reason=error_reason_pb2.ERROR_REASON_NOT_OWNER,
        retry_after=0.5,
    )
