"""The stream of a gateway worker, and the connections that it carries.

Bytes go down in batches: each is written when the previous write is done, after a short linger.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.shard.v1 import shard_service_pb2 as pb
from deskwire_chat.domain.actors import Actor, UserKey
from deskwire_chat.live.turns import Turns
from deskwire_chat.log import codec
from deskwire_common.errors import DeskwireError, InvalidArgument
from deskwire_common.fair import FairQueue
from deskwire_common.lines import OwnLines
from deskwire_common.logging import get_logger
from deskwire_common.pacing import link_pace
from deskwire_wire.errors import error_batch

_BATCH_ITEMS: Final = 200
_BATCH_BYTES: Final = 65_536
_FEW_BYTES: Final = 524_288
"""While no more than this waits to go down, tenants don't take turns."""
_QUANTUM_BYTES: Final = 16_384
"""How much goes down for a tenant in its turn."""
_QUEUE_BYTES: Final = 64 * 1024 * 1024
_MAX_ITEM: Final = 2 * 1024 * 1024
"""Most bytes of one item. gRPC ends a stream that gets more than 4 MiB at once, and so all its connections."""
_ROOM: Final = 4 * 1024 * 1024
"""While this many bytes wait to go down, no more Syncs are read."""


class Connection:
    """One connection of a worker; it is the `line` of its Sends. A `refused` connection only waits for its Detach.

    A `parked` connection is broken and may be resumed: it gets pushes, but its user doesn't count as present.
    """

    __slots__ = (
        "connected_at",
        "device_id",
        "held",
        "id",
        "may_not_open",
        "parked",
        "refused",
        "stream",
        "typed",
        "user",
        "who",
    )

    def __init__(
        self,
        stream: Stream,
        number: int,
        who: Actor,
        *,
        device_id: str = "",
        connected_at: int = 0,
        parked: bool = False,
    ) -> None:
        self.stream = stream
        self.id = number
        self.who = who
        self.user: UserKey = (who.tenant, int(who.role), who.subject)
        self.device_id = device_id
        self.connected_at = connected_at
        self.parked = parked
        self.held: OwnLines[str] | None = None
        self.typed: dict[str, tuple[bool, float]] | None = None
        self.refused: DeskwireError | None = None
        self.may_not_open: tuple[DeskwireError, float] | None = None
        """Why its visitor may open no more conversations, and until when that isn't looked at again."""

    @property
    def is_gone(self) -> bool:
        """Whether it isn't connected any more, as a Detach or the end of its stream said."""
        return self.stream.closed or self.stream.connections.get(self.id) is not self

    def is_again(self, other: Connection) -> bool:
        """Whether this is the same connection as `other`, on a newer stream of the same worker."""
        return other.id == self.id and other.stream.worker_id == self.stream.worker_id

    def put(self, batch: bytes, *, ephemeral: bool = False) -> None:
        """Send it an encoded Batch."""
        self.put_item(codec.down_item([self.id], batch, ephemeral=ephemeral))

    def put_item(self, item: bytes) -> None:
        """Send the gateway an encoded LinkResponse with one item for it."""
        self.stream.put(item, self.who.tenant)


class Stream:
    """One stream of a worker, and the bytes that wait to go down on it."""

    def __init__(self) -> None:
        self.worker_id = ""
        self.generation = 0
        self.connections: dict[int, Connection] = {}
        self.closed = False
        self.turns = Turns()
        # By tenant, and not by connection: an item may be for many of them, and each gets its items in their order.
        self._queue: FairQueue[bytes] = FairQueue(few=_FEW_BYTES, quantum=_QUANTUM_BYTES)
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self.pace = link_pace()
        self._ended = False

    def put(self, item: bytes, tenant: str = "") -> None:
        """Queue an encoded LinkResponse with one item; `tenant` is that of its connections."""
        if self.closed:
            return
        if len(item) > _MAX_ITEM:
            item = _too_large(item)
        queue = self._queue
        queue.put(item, len(item), tenant)
        if queue.size > _QUEUE_BYTES:
            # The gateway doesn't read: it reconnects, and its clients Sync.
            get_logger().warning("link_too_slow", worker_id=self.worker_id, bytes=queue.size)
            self.close()
            return
        self._wake.set()

    def close(self) -> None:
        """End the stream at once."""
        self.closed = True
        self._queue.clear()
        self._wake.set()
        self._drained.set()

    async def room(self) -> None:
        """Wait while too many bytes wait to go down."""
        while self._queue.size > _ROOM and not self.closed:
            self._drained.clear()
            await self._drained.wait()

    def end(self) -> None:
        """End the stream once everything that waits has gone down."""
        self._ended = True
        self._wake.set()

    async def batches(self) -> AsyncIterator[bytes]:
        """Yield encoded LinkResponses, ready to write."""
        loop = asyncio.get_running_loop()
        while not self.closed:
            if not self._queue:
                if self._ended:
                    return
                self._wake.clear()
                await self._wake.wait()
                await asyncio.sleep(self.pace.pause(loop.time()))
                continue
            parts = self._queue.take(_BATCH_ITEMS, _BATCH_BYTES)
            self._drained.set()
            self.pace.began(loop.time(), len(parts))
            yield b"".join(parts)


def _too_large(item: bytes) -> bytes:
    """Return what replaces an item that is too large: an Error for the same connections."""
    get_logger().error("link_item_too_large", bytes=len(item))
    (down,) = pb.LinkResponse.FromString(item).items
    error = InvalidArgument(
        f"what was to be sent here has {len(down.batch)} bytes, which is more than goes; ask for less",
        reason=reasons.ERROR_REASON_TOO_LARGE,
    )
    return codec.down_item(down.connection_ids, error_batch(error), send_id=down.send_id)
