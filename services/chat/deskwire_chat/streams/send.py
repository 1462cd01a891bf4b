"""StreamMessages: many messages of one caller on one stream, each stored as a Send is.

The messages that a stream has taken and not answered are bounded, and with them what a slow reader can make the server
keep: at the bound the server stops reading, and gRPC's flow control stops the sender.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from itertools import islice
from typing import Any, Final, Protocol

from deskwire.chat.v1 import conversation_service_pb2 as pb
from deskwire_chat import views
from deskwire_chat.domain.actors import Actor
from deskwire_chat.log.commands import Put, Stored
from deskwire_chat.log.writer import LogWriter
from deskwire_common import telemetry
from deskwire_common.auth import Principal, Role, current_principal
from deskwire_common.errors import DeskwireError, stopping
from deskwire_common.lines import MOST, OwnLines
from deskwire_common.metrics import METRICS
from deskwire_common.pagination import fit
from deskwire_common.quota import Quota
from deskwire_common.validation import Validator

WINDOW: Final = 1_000
"""Messages of a stream that may wait for their results to be read."""
WINDOW_BYTES: Final = 8 * 1024 * 1024
"""Bytes of a stream's messages that may wait to be stored."""
RESULTS: Final = 500
"""Most results in one response."""
_ECHO: Final = 64
"""How many characters are echoed of an id that breaks the contract's limits."""


class Way(Protocol):
    """Takes a stream's messages (streams.forward.Forwarder)."""

    def submit(self, command: Put) -> None:
        """Queue a message for its owner. Raises ResourceExhausted, Unavailable."""
        ...


class MessageStreams:
    """All StreamMessages calls of this process."""

    def __init__(
        self,
        writer: LogWriter,
        way: Callable[[Any], Way],
        validator: Validator,
        admit: Callable[[Principal], None],
        slots: Quota,
    ) -> None:
        """`way` makes a Way to the owners from the context of a call (streams.forward.Forwarders)."""
        self._writer = writer
        self._way = way
        self._validator = validator
        self._admit = admit
        self._slots = slots
        self._open: set[_Stream] = set()
        self._stopping = False

    async def serve(
        self, requests: AsyncIterator[pb.StreamMessagesRequest], context: Any
    ) -> AsyncGenerator[pb.StreamMessagesResponse]:
        """Serve one stream of the current principal; see the contract."""
        principal = current_principal()
        if self._stopping:
            raise stopping()
        with self._slots.taken(principal.tenant, "open streams"):
            stream = _Stream(self._writer, self._way(context), self._validator, principal)
            reading = asyncio.create_task(stream.read(requests, self._admit), name="stream-read")
            stream.reads_with(reading)
            self._open.add(stream)
            try:
                async for response in stream.responses():
                    yield response
                if reading.cancelled():
                    raise stream.error or stopping()
                reading.result()
            finally:
                self._open.discard(stream)
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                stream.close()

    def expel(self) -> None:
        """End the streams of callers who aren't admitted any more."""
        for stream in self._open:
            try:
                self._admit(stream.principal)
            except DeskwireError as error:
                stream.stop(error)

    async def drain(self, seconds: float = 3.0) -> None:
        """Take no more messages, answer those taken, and end all streams; slow readers get `seconds`."""
        self._stopping = True
        for stream in self._open:
            stream.stop()
        deadline = asyncio.get_running_loop().time() + seconds
        while self._open and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)


class _Stream:
    """One stream, which is the line of its messages. `_taken` counts messages read whose results aren't written yet."""

    def __init__(
        self, writer: LogWriter, way: Way, validator: Validator, principal: Principal
    ) -> None:
        self._writer = writer
        self._way = way
        self._validator = validator
        self.principal = principal
        self.error: DeskwireError | None = None
        self._who = Actor.of(principal)
        self._taken = 0
        self._bytes = 0
        self._results: deque[pb.StreamedResult] = deque()
        self._held = OwnLines[str](MOST if principal.role is Role.VISITOR else None)
        self._closed = False
        self._reading: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()

    def reads_with(self, reading: asyncio.Task[None]) -> None:
        """Have the stream end when this task has ended and everything is answered."""
        self._reading = reading
        reading.add_done_callback(lambda _: self._wake.set())

    def stop(self, error: DeskwireError | None = None) -> None:
        """Read no more; the stream ends with `error`."""
        self.error = error
        if self._reading is not None:
            self._reading.cancel()

    def close(self) -> None:
        """Free what the stream holds."""
        self._closed = True
        self._writer.forget_line(self, self._held)

    async def read(
        self, requests: AsyncIterator[pb.StreamMessagesRequest], admit: Callable[[Principal], None]
    ) -> None:
        """Take messages while there is room. Raises what ends the stream."""
        async for request in requests:
            admit(self.principal)
            for message in request.messages:
                while self._taken >= WINDOW or self._bytes >= WINDOW_BYTES:
                    self._room.clear()
                    await self._room.wait()
                self._taken += 1
                self._take(message)

    async def responses(self) -> AsyncIterator[pb.StreamMessagesResponse]:
        """Yield the results; end when no more can come."""
        while self._taken or self._reading is None or not self._reading.done():
            await self._wake.wait()
            self._wake.clear()
            while self._results:
                batch = fit(islice(self._results, RESULTS))
                for _ in batch:
                    self._results.popleft()
                yield pb.StreamMessagesResponse(results=batch)
                # The response is with the transport now, which waits for a slow reader.
                self._taken -= len(batch)
                self._room.set()

    def _take(self, message: pb.StreamedMessage) -> None:
        size = message.ByteSize()
        self._bytes += size
        reply = partial(self._answered, message, size)
        try:
            kind, target_seq = views.content.checked(message, self._validator)
            traceparent = message.traceparent
            self._way.submit(
                Put(
                    who=self._who,
                    conversation_id=message.conversation_id.lower(),
                    client_msg_id=message.client_msg_id,
                    body=message.content.SerializeToString(),
                    reply=reply,
                    traceparent=traceparent if telemetry.sampled(traceparent) else "",
                    line=self,
                    kind=kind,
                    target_seq=target_seq,
                )
            )
        except DeskwireError as error:
            METRICS.messages_refused.labels(error.reason_name).inc()
            reply(error)

    def _answered(
        self, message: pb.StreamedMessage, size: int, result: Stored | DeskwireError
    ) -> None:
        self._bytes -= size
        self._room.set()
        self._results.append(self._result(message, result))
        self._wake.set()
        if self._closed:
            # The stream is over: nobody is left for whom the line could be held.
            self._writer.forget_line(self, [message.conversation_id.lower()])

    def _result(
        self, message: pb.StreamedMessage, result: Stored | DeskwireError
    ) -> pb.StreamedResult:
        if isinstance(result, Stored):
            self._held.discard(result.message.conversation_id)
            ack = pb.StreamedAck(
                conversation_id=result.message.conversation_id,
                client_msg_id=result.message.client_msg_id,
                message_id=result.message.message_id,
                epoch=result.epoch,
                seq=result.message.seq,
                duplicate=result.duplicate,
            )
            ack.create_time.FromMicroseconds(result.message.created_at)
            return pb.StreamedResult(ack=ack)
        if result.temporary:
            self._writer.forget_line(self, self._held.add(message.conversation_id.lower()))
        error = pb.StreamedError(
            conversation_id=message.conversation_id[:_ECHO],
            client_msg_id=message.client_msg_id[:_ECHO],
            reason=result.reason,
            message=result.message,
            temporary=result.temporary,
        )
        if result.retry_after is not None:
            error.retry_after.FromMilliseconds(int(result.retry_after * 1000))
        return pb.StreamedResult(error=error)
