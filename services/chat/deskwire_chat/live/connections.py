"""Who is connected: the connections of all gateway workers, by user, and what is sent to them.

The stream is the only source of presence: an Attach opens a connection, a Detach closes it, and a stream that ends
closes all of its connections. Bytes go down in batches: each is written when the previous write is done, after a
short linger.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Hashable, Iterable
from typing import Final

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.shard.v1 import shard_service_pb2 as pb
from deskwire_chat.domain.actors import Actor, ActorRole, UserKey
from deskwire_chat.live.admission import Admission
from deskwire_chat.log import codec
from deskwire_chat.log.commands import Held
from deskwire_chat.routing.router import Router
from deskwire_common.errors import DeskwireError, FailedPrecondition, InvalidArgument
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_common.pacing import link_pace
from deskwire_wire.errors import error_batch

_BATCH_ITEMS: Final = 200
_BATCH_BYTES: Final = 65_536
_QUEUE_BYTES: Final = 64 * 1024 * 1024
_MAX_ITEM: Final = 2 * 1024 * 1024
"""Most bytes of one item. gRPC ends a stream that gets more than 4 MiB at once, and so all its connections."""
_ANSWERS: Final = 4
"""Syncs of one stream that are read from the database at once."""
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
        self.held: set[str] | None = None
        self.typed: dict[str, tuple[bool, float]] | None = None
        self.refused: DeskwireError | None = None

    def is_again(self, other: Connection) -> bool:
        """Whether this is the same connection as `other`, on a newer stream of the same worker."""
        return other.id == self.id and other.stream.worker_id == self.stream.worker_id

    def put(self, batch: bytes, *, ephemeral: bool = False) -> None:
        """Send it an encoded Batch."""
        self.stream.put(codec.down_item([self.id], batch, ephemeral=ephemeral))


class Stream:
    """One stream of a worker, and the bytes that wait to go down on it."""

    def __init__(self) -> None:
        self.worker_id = ""
        self.generation = 0
        self.connections: dict[int, Connection] = {}
        self.closed = False
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self.answers = asyncio.Semaphore(_ANSWERS)
        self.pace = link_pace()
        self._ended = False

    def put(self, item: bytes) -> None:
        """Queue an encoded LinkResponse with one item."""
        if self.closed:
            return
        if len(item) > _MAX_ITEM:
            item = _too_large(item)
        self._bytes += len(item)
        if self._bytes > _QUEUE_BYTES:
            # The gateway doesn't read: it reconnects, and its clients Sync.
            get_logger().warning("link_too_slow", worker_id=self.worker_id, bytes=self._bytes)
            self.close()
            return
        self._queue.append(item)
        self._wake.set()

    def close(self) -> None:
        """End the stream at once."""
        self.closed = True
        self._queue.clear()
        self._wake.set()
        self._drained.set()

    async def room(self) -> None:
        """Wait while too many bytes wait to go down."""
        while self._bytes > _ROOM and not self.closed:
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
            parts: list[bytes] = []
            size = 0
            while self._queue and len(parts) < _BATCH_ITEMS and size < _BATCH_BYTES:
                item = self._queue.popleft()
                size += len(item)
                parts.append(item)
            self._bytes -= size
            self._drained.set()
            self.pace.began(loop.time(), len(parts))
            yield b"".join(parts)


class Connections:
    """The connections of all streams, by user."""

    def __init__(self, router: Router, admission: Admission, held: Held) -> None:
        """`held` are the held lines of the log; a connection that is removed releases its own."""
        self._router = router
        self._admission = admission
        self._held = held
        self._users: dict[UserKey, dict[int, Connection]] = {}
        self._devices: dict[tuple[UserKey, str], Connection] = {}
        self._numbers = itertools.count(1)
        self._deliveries = METRICS.deliveries.labels()
        self.agents: dict[str, dict[UserKey, None]] = {}
        """Tenant → its connected agents and bots."""
        self.left: deque[tuple[float, UserKey]] = deque()
        """Users whose last connection has gone, and when, on the loop's clock; Presence takes them out."""

    # ------------------------------------------------------------------------------- coming, going

    def add(self, connection: Connection) -> bool:
        """Add a connection that opened; return False when it is refused."""
        connection.stream.connections[connection.id] = connection
        METRICS.attached.inc()
        refusal = self._admission.refusal_of(connection.user)
        if refusal is not None:
            self._refuse(connection, refusal)
            return False
        if connection.device_id and not self._is_newest(connection):
            return False
        self._users.setdefault(connection.user, {})[next(self._numbers)] = connection
        if connection.who.role in {ActorRole.AGENT, ActorRole.BOT}:
            self.agents.setdefault(connection.who.tenant, {})[connection.user] = None
        if not connection.parked:
            self._connected(connection)
        return True

    def remove(self, connection: Connection) -> None:
        """Remove a connection that closed."""
        if connection.stream.connections.pop(connection.id, None) is None:
            return
        METRICS.attached.dec()
        if connection.refused is None:
            self._leave(connection)

    def park(self, connection: Connection) -> None:
        """Mark a connection as broken; it may be resumed."""
        if connection.refused is None and not connection.parked:
            connection.parked = True
            self._disconnected(connection)

    def unpark(self, connection: Connection) -> None:
        """Mark a parked connection as resumed."""
        if connection.refused is None and connection.parked:
            connection.parked = False
            self._connected(connection)

    def expel(self) -> None:
        """End the connections of all users who aren't admitted any more."""
        for user in list(self._users):
            refusal = self._admission.refusal_of(user)
            if refusal is not None:
                for connection in list(self._users[user].values()):
                    self._leave(connection)
                    self._refuse(connection, refusal)

    def _is_newest(self, connection: Connection) -> bool:
        """Refuse all but the newest of a user's connections with one device_id; whether `connection` is the newest."""
        key = connection.user, connection.device_id
        other = self._devices.get(key)
        older = connection
        if other is None or other.connected_at <= connection.connected_at:
            self._devices[key] = connection
            if other is None or connection.is_again(other):
                return True
            self._leave(other)
            older = other
        self._refuse(
            older,
            FailedPrecondition(
                "a newer connection of this device has taken over",
                reason=reasons.ERROR_REASON_SESSION_REPLACED,
            ),
        )
        return older is not connection

    @staticmethod
    def _refuse(connection: Connection, refusal: DeskwireError) -> None:
        """Have the gateway end a connection."""
        connection.refused = refusal
        connection.stream.put(codec.refusal_item([connection.id], refusal.reason, refusal.message))

    def _leave(self, connection: Connection) -> None:
        """Stop pushes to a connection, and take it out of routing."""
        user = connection.user
        here = self._users[user]
        for key in [key for key, each in here.items() if each is connection]:
            del here[key]
        if not here:
            del self._users[user]
            if user in self.agents.get(user[0], ()):
                del self.agents[user[0]][user]
                if not self.agents[user[0]]:
                    del self.agents[user[0]]
        if connection.device_id:
            device = user, connection.device_id
            if self._devices.get(device) is connection:
                del self._devices[device]
        for conversation_id in connection.held or ():
            self._held.release((connection, conversation_id))
        if not connection.parked:
            self._disconnected(connection)

    def _connected(self, connection: Connection) -> None:
        if connection.who.role in {ActorRole.AGENT, ActorRole.BOT}:
            self._router.agent_connected(*_as_agent(connection.user))

    def _disconnected(self, connection: Connection) -> None:
        if connection.who.role in {ActorRole.AGENT, ActorRole.BOT}:
            self._router.agent_disconnected(*_as_agent(connection.user))
        if not self.is_present(connection.user):
            self.left.append((asyncio.get_running_loop().time(), connection.user))

    # ---------------------------------------------------------------------------------- delivering

    def is_present(self, user: UserKey) -> bool:
        """Whether a connection of the user is open, and not only parked."""
        return any(not each.parked for each in self._users.get(user, {}).values())

    def deliver(
        self,
        users: Iterable[UserKey],
        batch: bytes,
        *,
        without: Hashable = None,
        ephemeral: bool = False,
    ) -> None:
        """Send an encoded Batch to all connections of some users, except the connection `without`."""
        ids: dict[Stream, list[int]] = {}
        for user in users:
            for connection in self._users.get(user, {}).values():
                if connection is not without:
                    ids.setdefault(connection.stream, []).append(connection.id)
        for stream, numbers in ids.items():
            self._deliveries.inc(len(numbers))
            stream.put(codec.down_item(numbers, batch, ephemeral=ephemeral))


def _too_large(item: bytes) -> bytes:
    """Return what replaces an item that is too large: an Error for the same connections."""
    get_logger().error("link_item_too_large", bytes=len(item))
    (down,) = pb.LinkResponse.FromString(item).items
    error = InvalidArgument(
        f"what was to be sent here has {len(down.batch)} bytes, which is more than goes; ask for less",
        reason=reasons.ERROR_REASON_TOO_LARGE,
    )
    return codec.down_item(down.connection_ids, error_batch(error), send_id=down.send_id)


def _as_agent(user: UserKey) -> tuple[str, str, bool]:
    """Return tenant, agent_id, and whether the user is a bot."""
    return user[0], user[2], user[1] == ActorRole.BOT
