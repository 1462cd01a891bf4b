"""A connection to the gateway that comes back by itself, loses nothing and keeps the order.

Sends wait in an outbox until their SendAck and are sent again after every break. A session whose connection broke is
resumed, so that a brief break costs nothing. Messages are handed out in `seq` order per conversation, each once; a gap
is filled by Sync before anything after it is handed out.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Self, TypeVar

from google.protobuf.message import Message

from deskwire.chat.v1 import attachment_pb2, conversation_pb2
from deskwire.common.v1 import actor_pb2
from deskwire.gateway.v1 import frame_pb2
from deskwire_client.calls import Calls
from deskwire_client.connection import Connection
from deskwire_client.conversations import Conversations
from deskwire_client.errors import Closed
from deskwire_client.outbox import Outbox
from deskwire_client.tokens import Tokens, TokenSource

Signal = frame_pb2.Typing | frame_pb2.Presence
"""Pushes that matter only now, and not later."""

ResponseT = TypeVar("ResponseT", bound=Message)


class Client:
    """One visitor, agent or bot. Use it as `async with Client(url, token) as client`."""

    def __init__(
        self,
        url: str,
        token: TokenSource,
        *,
        name: str = "deskwire-client/0.1.0",
        device_id: str = "",
        receipts: bool = True,
        on_push: Callable[[frame_pb2.Push], None] | None = None,
        on_signal: Callable[[Signal], None] = lambda _signal: None,
    ) -> None:
        """`url` is the gateway's, `ws://host:port/ws`. `on_push` gets what `updates` would yield, without a queue.

        `device_id`: the user has one connection per device, the newest. `receipts`: report to the others that messages
        have arrived. `on_signal` is called when somebody types, comes or leaves.
        """
        self._on_signal = on_signal
        self._updates: asyncio.Queue[frame_pb2.Push | None] = asyncio.Queue()
        tokens = Tokens(token)
        self._connection = Connection(
            url,
            tokens,
            name=name,
            device_id=device_id,
            on_open=self._opened,
            on_frame=self._received,
            on_end=self._ended,
        )
        self._outbox = Outbox(self._connection)
        self._calls = Calls(self._connection, tokens)
        self._conversations = Conversations(
            self._connection, on_push or self._updates.put_nowait, receipts=receipts
        )

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self, *, timeout: float = 15.0) -> None:
        """Connect and stay connected. Raises Refused when the token isn't accepted, TimeoutError."""
        try:
            async with asyncio.timeout(timeout):
                await self._connection.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Say Goodbye. Sends without their ack raise Closed: whether they were stored isn't known."""
        await self._connection.stop()
        self._ended(Closed("the client was closed"))

    async def send(
        self, conversation_id: str, text: str, *, client_msg_id: str = "", traceparent: str = ""
    ) -> frame_pb2.SendAck:
        """Store a message; returns when it is committed, however often the connection breaks meanwhile.

        A visitor opens a conversation by a new conversation_id (a UUID of their own). Raises Refused, Closed.
        """
        return await self.post(
            conversation_id, text, client_msg_id=client_msg_id, traceparent=traceparent
        )

    def post(
        self, conversation_id: str, text: str, *, client_msg_id: str = "", traceparent: str = ""
    ) -> asyncio.Future[frame_pb2.SendAck]:
        """Queue a message behind those queued before; the future has the result of `send`."""
        content = conversation_pb2.Content(text=text)
        return self.post_content(
            conversation_id, content, client_msg_id=client_msg_id, traceparent=traceparent
        )

    async def edit(self, conversation_id: str, seq: int, text: str) -> frame_pb2.SendAck:
        """Change the text of one's own message. Raises Refused, Closed."""
        content = conversation_pb2.Content(edit=conversation_pb2.Edit(seq=seq, text=text))
        return await self.post_content(conversation_id, content)

    async def redact(self, conversation_id: str, seq: int, reason: str = "") -> frame_pb2.SendAck:
        """Redact a message: it is wiped from history. Raises Refused, Closed."""
        redaction = conversation_pb2.Redaction(seq=seq, reason=reason)
        return await self.post_content(
            conversation_id, conversation_pb2.Content(redaction=redaction)
        )

    async def note(self, conversation_id: str, text: str) -> frame_pb2.SendAck:
        """Make a note that only the desk sees. Raises Refused, Closed."""
        content = conversation_pb2.Content(note=conversation_pb2.Note(text=text))
        return await self.post_content(conversation_id, content)

    async def attach(
        self, conversation_id: str, attachment: attachment_pb2.Attachment
    ) -> frame_pb2.SendAck:
        """Send a file that AttachmentService has made READY. Raises Refused, Closed."""
        reference = conversation_pb2.AttachmentReference(
            attachment_id=attachment.attachment_id,
            file_name=attachment.file_name,
            content_type=attachment.content_type,
            size_bytes=attachment.size_bytes,
        )
        content = conversation_pb2.Content(attachment=reference)
        return await self.post_content(conversation_id, content)

    def post_content(
        self,
        conversation_id: str,
        content: conversation_pb2.Content,
        *,
        client_msg_id: str = "",
        traceparent: str = "",
    ) -> asyncio.Future[frame_pb2.SendAck]:
        """Queue any content behind what was queued before; the future has the result of `send`."""
        self._check_kept()
        send = frame_pb2.Send(
            conversation_id=conversation_id,
            client_msg_id=client_msg_id or str(uuid.uuid4()),
            content=content,
            traceparent=traceparent,
        )
        return self._outbox.add(send)

    async def call(
        self,
        method: str,
        request: Message,
        response: type[ResponseT],
        *,
        timeout: float = 10.0,
        traceparent: str = "",
    ) -> ResponseT:
        """Make a unary call to chat, for example of `/deskwire.chat.v1.AgentService/SetAgentStatus`.

        It is made again when the connection breaks meanwhile: calls read, or have a request_id. Raises Refused,
        TimeoutError when no answer came within `timeout` seconds (30 at the most), Closed.
        """
        self._check_kept()
        answer = await self._calls.make(method, request, timeout=timeout, traceparent=traceparent)
        return response.FromString(answer)

    async def updates(self) -> AsyncIterator[frame_pb2.Push]:
        """Yield updates until the client is closed: messages in order (one's own too), conversations, customers.

        Receipts, the queue and, to agents, offers and their ends come as they are pushed; an offer may come twice.
        """
        while True:
            push = await self._updates.get()
            if push is None:
                return
            yield push

    def read(self, conversation_id: str, seq: int = 0) -> None:
        """Tell the others that a person has seen the messages up to `seq`; 0: all that were handed out."""
        self._conversations.read(conversation_id, seq)

    def typing(self, conversation_id: str, *, on: bool = True) -> None:
        """Tell the others that somebody is typing here, or has stopped. Call it again every 3 s of typing."""
        typing = frame_pb2.Typing(conversation_id=conversation_id, typing=on)
        self._connection.write([frame_pb2.Frame(typing=typing)])

    def position(self, conversation_id: str) -> int:
        """The seq up to which this client has handed out a conversation."""
        return self._conversations.position(conversation_id)

    def unread(self, conversation_id: str) -> int:
        """How many texts and files of others this user hasn't read in a conversation, on any device."""
        return self._conversations.unread(conversation_id)

    @property
    def connected(self) -> bool:
        """Whether a connection is open now."""
        return self._connection.is_open

    @property
    def reconnects(self) -> int:
        """How often the client tried to connect again."""
        return self._connection.reconnects

    @property
    def lossless_resumes(self) -> int:
        """How often the session went on after a break without a loss."""
        return self._connection.lossless_resumes

    # ------------------------------------------------------------------------------------ its parts

    def _check_kept(self) -> None:
        if not self._connection.is_kept:
            raise Closed("the client is not connected")

    def _opened(self, welcome: frame_pb2.Welcome, lossless: bool) -> None:
        self._outbox.again(welcome.max_unacked_sends or 1)
        self._calls.again(welcome.max_calls or 1)
        self._conversations.again(lossless=lossless)
        self._outbox.flush()
        self._calls.flush()

    def _received(self, kind: str, frame: frame_pb2.Frame) -> None:
        if kind == "push":
            self._conversations.pushed(frame.push)
        elif kind == "send_ack":
            self._acked(frame.send_ack)
        elif kind == "synced":
            self._conversations.synced(frame.synced)
        elif kind == "head":
            self._conversations.head(frame.head)
        elif kind == "rpc_result":
            self._calls.answered(frame.rpc_result)
        elif kind == "error":
            if not self._outbox.refused(frame.error):
                self._conversations.sync_failed(frame.error)
        elif kind in {"typing", "presence"}:
            self._on_signal(getattr(frame, kind))

    def _acked(self, ack: frame_pb2.SendAck) -> None:
        content = self._outbox.acked(ack)
        if content is None:
            return
        message = conversation_pb2.Message(
            message_id=ack.message_id,
            conversation_id=ack.conversation_id,
            seq=ack.seq,
            sender=actor_pb2.Actor(),
            client_msg_id=ack.client_msg_id,
            content=content,
            create_time=ack.create_time,
        )
        self._conversations.arrived(message, ack.epoch)
        self._outbox.flush()

    def _ended(self, error: Exception) -> None:
        self._conversations.stop()
        self._outbox.fail(error)
        self._calls.fail(error)
        self._updates.put_nowait(None)
