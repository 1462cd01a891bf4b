"""How connections open and close: who is let in, which one of a device counts, and what routing hears of agents.

The stream is the only source of presence: an Attach opens a connection, a Detach closes it, and a stream that ends
closes all of its connections.
"""

from __future__ import annotations

import asyncio

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_chat.domain.actors import ActorRole, UserKey
from deskwire_chat.live.admission import Admission
from deskwire_chat.live.audience import Audience
from deskwire_chat.live.stream import Connection
from deskwire_chat.log import codec
from deskwire_chat.log.commands import Held
from deskwire_chat.routing.router import Router
from deskwire_common.errors import DeskwireError, FailedPrecondition
from deskwire_common.metrics import METRICS


class Connections:
    """The connections of all streams, from Attach to Detach."""

    def __init__(
        self, audience: Audience, router: Router, admission: Admission, held: Held
    ) -> None:
        """`held` are the held lines of the log; a connection that is removed releases its own."""
        self._audience = audience
        self._router = router
        self._admission = admission
        self._held = held
        self._devices: dict[tuple[UserKey, str], Connection] = {}

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
        self._audience.add(connection)
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
        for user in self._audience.users():
            refusal = self._admission.refusal_of(user)
            if refusal is not None:
                for connection in self._audience.connections_of(user):
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
        connection.put_item(codec.refusal_item([connection.id], refusal.reason, refusal.message))

    def _leave(self, connection: Connection) -> None:
        """Stop pushes to a connection, and take it out of routing."""
        self._audience.remove(connection)
        if connection.device_id:
            device = connection.user, connection.device_id
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
        if not self._audience.is_present(connection.user):
            self._audience.left.append((asyncio.get_running_loop().time(), connection.user))


def _as_agent(user: UserKey) -> tuple[str, str, bool]:
    """Return tenant, agent_id, and whether the user is a bot."""
    return user[0], user[2], user[1] == ActorRole.BOT
