"""Streams forwarded to the owners of their conversations: messages are stored in order, as if sent to the owner.

Messages for partitions of this process go straight to its writer. Others are forwarded one by one per conversation, as
the next one may only go when the one before has its place.
"""

from __future__ import annotations

import asyncio
import itertools
from bisect import insort
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any, Final

import grpc

from deskwire.chat.v1 import conversation_service_pb2 as pb
from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_chat.domain.conversations import partition_of
from deskwire_chat.domain.messages import Message
from deskwire_chat.log.commands import Put, Reply, Stored, reply_to
from deskwire_chat.log.writer import LogWriter
from deskwire_chat.owners.errors import NotOwner
from deskwire_chat.owners.forwarding import Peers, forwarding, was_not_taken
from deskwire_chat.owners.ownership import Ownership
from deskwire_chat.streams.watch import Watchers
from deskwire_common.errors import (
    DeskwireError,
    Internal,
    from_rpc_error,
)
from deskwire_common.lines import line_held
from deskwire_common.logging import get_logger

SEND: Final = "/deskwire.chat.v1.ConversationService/SendMessage"
WATCH: Final = "/deskwire.chat.v1.ConversationService/WatchConversation"
_PATIENCE: Final = 10.0
_AGAIN: Final = 0.2
_CALL_SECONDS: Final = 10.0


class _Line:
    """A conversation whose messages another process stores, or stored a moment ago."""

    __slots__ = ("held", "task", "waiting")

    def __init__(self) -> None:
        self.waiting: list[tuple[int, Put, Reply]] = []
        self.held = ""
        self.task: asyncio.Task[None] | None = None


class Forwarders:
    """Makes the forwarder of each stream."""

    def __init__(self, writer: LogWriter, ownership: Ownership, peers: Peers) -> None:
        self.writer = writer
        self.ownership = ownership
        self.peers = peers

    def forwarder(self, context: Any) -> Forwarder:
        """Return the forwarder of one caller's stream; `context` is that of its call."""
        return Forwarder(self, forwarding(context))


class Forwarder:
    """Takes one stream's messages to their owners; those for this process go straight to its writer."""

    def __init__(self, shared: Forwarders, metadata: grpc.aio.Metadata) -> None:
        """`metadata` is sent with forwarded calls, which so are the stream's caller's."""
        self._writer = shared.writer
        self._ownership = shared.ownership
        self._peers = shared.peers
        self._metadata = metadata
        self._lines: dict[str, _Line] = {}
        self._numbers = itertools.count()

    def submit(self, command: Put) -> None:
        """Queue a message as LogWriter.submit does, wherever its owner is. Never raises NotOwner."""
        number, reply = next(self._numbers), command.reply
        if command.conversation_id not in self._lines:
            command.reply = partial(self._answered, number, command, reply)
            try:
                self._writer.submit(command)
            except NotOwner:
                pass
            except DeskwireError as error:
                self._note(command, error)
                raise
            else:
                return
        self._forward(number, command, reply)

    def _answered(
        self, number: int, command: Put, reply: Reply, result: Stored | DeskwireError
    ) -> None:
        if isinstance(result, NotOwner):
            self._forward(number, command, reply)
            return
        if isinstance(result, DeskwireError):
            self._note(command, result)
        reply(result)

    def _note(self, command: Put, error: DeskwireError) -> None:
        """Remember a held line: the writer forgets it when the partition leaves this process, the stream must not."""
        if error.temporary and error.reason != reasons.ERROR_REASON_LINE_HELD:
            line = self._lines.setdefault(command.conversation_id, _Line())
            line.held = line.held or command.client_msg_id

    def _forward(self, number: int, command: Put, reply: Reply) -> None:
        line = self._lines.setdefault(command.conversation_id, _Line())
        # What the writer gives back may be older than what has arrived since.
        insort(line.waiting, (number, command, reply), key=lambda each: each[0])
        if line.task is None:
            line.task = asyncio.create_task(self._go(command.conversation_id, line))

    async def _go(self, conversation_id: str, line: _Line) -> None:
        # What still waits in the writer for this conversation comes back before this.
        await self._writer.finish()
        while line.waiting:
            _, command, reply = line.waiting.pop(0)
            if line.held and line.held != command.client_msg_id:
                reply(line_held(line.held))
                continue
            try:
                result = await self._store(command)
            except DeskwireError as error:
                line.held = command.client_msg_id if error.temporary else ""
                reply(error)
            except Exception as error:  # noqa: BLE001 - the stream's other conversations go on
                get_logger().error("message_not_forwarded", exc_info=error)
                reply(Internal("the message could not be passed on; see the server's log"))
            else:
                line.held = ""
                reply(result)
        line.task = None
        if not line.held:
            self._lines.pop(conversation_id, None)

    async def _store(self, command: Put) -> Stored:
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE
        number = partition_of(command.conversation_id)
        while True:
            try:
                if self._ownership.term_of(number):
                    return await self._store_here(command)
                if self._peers.elsewhere(command.conversation_id) is not None:
                    return await self._store_there(command)
            except NotOwner:
                pass
            if loop.time() >= until:
                raise NotOwner
            await self._ownership.wait_for_change(_AGAIN)

    async def _store_here(self, command: Put) -> Stored:
        future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        command.reply, command.term = reply_to(future), 0
        self._writer.submit(command)
        return await future

    async def _store_there(self, command: Put) -> Stored:
        owner = self._peers.elsewhere(command.conversation_id)
        if owner is None:
            raise NotOwner
        request = pb.SendMessageRequest(
            conversation_id=command.conversation_id, client_msg_id=command.client_msg_id
        )
        request.content.ParseFromString(command.body)
        metadata = grpc.aio.Metadata(*self._metadata)
        if command.traceparent:
            metadata.delete_all("traceparent")
            metadata.add("traceparent", command.traceparent)
        call: Any = self._peers.channel(owner).unary_unary(
            SEND,
            request_serializer=pb.SendMessageRequest.SerializeToString,
            response_deserializer=pb.SendMessageResponse.FromString,
        )
        try:
            answer = await call(request, metadata=metadata, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if was_not_taken(error):
                raise NotOwner from error
            raise from_rpc_error(error) from error
        return _stored(answer, command)


def _stored(answer: pb.SendMessageResponse, command: Put) -> Stored:
    """Return a message that the owner has stored, from the owner's answer."""
    message = answer.message
    item = Message(
        message_id=message.message_id,
        conversation_id=message.conversation_id,
        tenant=command.who.tenant,
        seq=message.seq,
        position=0,
        role=int(command.who.role),
        subject=command.who.subject,
        name=command.who.name,
        origin=command.who.origin,
        client_msg_id=message.client_msg_id,
        body=command.body,
        created_at=message.create_time.ToMicroseconds(),
        traceparent=command.traceparent,
    )
    return Stored(item, answer.epoch, b"", b"", b"", duplicate=answer.duplicate)


class WatchForwarder:
    """Serves WatchConversation wherever the conversation's owner is: here, or forwarded."""

    def __init__(self, watchers: Watchers, peers: Peers) -> None:
        self._watchers = watchers
        self._peers = peers

    async def serve(
        self, request: pb.WatchConversationRequest, context: Any
    ) -> AsyncGenerator[pb.WatchConversationResponse]:
        """Serve one watch of the current principal; see the contract."""
        owner = await self._peers.owner(request.conversation_id, context)
        watched = (
            self._watchers.watch(request)
            if owner is None
            else self._peers.stream(WATCH, owner, request, context, pb.WatchConversationResponse)
        )
        async with aclosing(watched) as responses:
            async for response in responses:
                yield response
