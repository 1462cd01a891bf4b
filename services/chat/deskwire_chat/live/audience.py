"""The audience: the open connections by user, and what is sent to them.

It knows no routing, so routing's own news can be sent to it; `connections` lets users in and out.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Hashable, Iterable

from deskwire_chat.domain.actors import ActorRole, UserKey
from deskwire_chat.live.stream import Connection, Stream
from deskwire_chat.log import codec
from deskwire_common.metrics import METRICS


class Audience:
    """Who is connected, and how they are reached."""

    def __init__(self) -> None:
        self.agents: dict[str, dict[UserKey, None]] = {}
        """Tenant → its connected agents and bots."""
        self.left: deque[tuple[float, UserKey]] = deque()
        """Users whose last connection has gone, and when, on the loop's clock; Presence takes them out."""
        self._users: dict[UserKey, dict[int, Connection]] = {}
        self._numbers = itertools.count(1)
        self._deliveries = METRICS.deliveries.labels()

    def add(self, connection: Connection) -> None:
        """Send a connection what its user gets."""
        self._users.setdefault(connection.user, {})[next(self._numbers)] = connection
        if connection.who.role in {ActorRole.AGENT, ActorRole.BOT}:
            self.agents.setdefault(connection.who.tenant, {})[connection.user] = None

    def remove(self, connection: Connection) -> None:
        """Send a connection nothing more."""
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

    def users(self) -> list[UserKey]:
        """Return all users who have a connection."""
        return list(self._users)

    def connections_of(self, user: UserKey) -> list[Connection]:
        """Return a user's connections, the parked ones too."""
        return list(self._users.get(user, {}).values())

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
        """Send an encoded Batch to all connections of some users of one tenant, except the connection `without`."""
        ids: dict[Stream, list[int]] = {}
        tenant = ""
        for user in users:
            tenant = user[0]
            for connection in self._users.get(user, {}).values():
                if connection is not without:
                    ids.setdefault(connection.stream, []).append(connection.id)
        for stream, numbers in ids.items():
            self._deliveries.inc(len(numbers))
            stream.put(codec.down_item(numbers, batch, ephemeral=ephemeral), tenant)
