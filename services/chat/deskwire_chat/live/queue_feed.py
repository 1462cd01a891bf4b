"""The queue as agents and bots see it: how many conversations of their tenant wait, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from deskwire.gateway.v1 import frame_pb2
from deskwire_chat.live.audience import Audience
from deskwire_chat.live.stream import Connection
from deskwire_chat.store import conversations
from deskwire_common.clock import Clock, now_micros, to_timestamp
from deskwire_common.db import AWAY, Database
from deskwire_common.loops import every
from deskwire_wire.batches import encoded

_SECONDS: Final = 1.0


class QueueFeed:
    """Sends a tenant's connected agents the state of its queue when it changed, at most once a second.

    The state is read from the database, as each of several chat processes routes only a part of the queue.
    """

    def __init__(
        self,
        db: Database,
        audience: Audience,
        clock: Clock,
        *,
        is_ours: Callable[[str], bool] = lambda _tenant: True,
    ) -> None:
        """`is_ours`: whether this process tells of a tenant's queue; among several processes only one does."""
        self._db = db
        self._audience = audience
        self._clock = clock
        self._is_ours = is_ours
        self._sent: dict[str, tuple[int, int]] = {}

    def connected(self, connection: Connection) -> None:
        """Send the state of the queue to an agent who connected; the first agent gets it from `run`."""
        state = self._sent.get(connection.who.tenant)
        if state is not None and connection.user in self._audience.agents.get(
            connection.who.tenant, ()
        ):
            connection.put(self._push(state))

    async def run(self) -> None:
        """Look once a second until cancelled; outlasts a database that is away."""
        await every(_SECONDS, self._round, failed="queue_not_read", outlast=AWAY, at_once=False)

    async def _round(self) -> None:
        agents = {
            tenant: list(users)
            for tenant, users in self._audience.agents.items()
            if self._is_ours(tenant)
        }
        self._sent = {tenant: each for tenant, each in self._sent.items() if tenant in agents}
        if not agents:
            return
        async with self._db.read() as c:
            found = await conversations.waiting(c, list(agents))
        for tenant, users in agents.items():
            state = found.get(tenant, (0, 0))
            if self._sent.get(tenant) != state:
                self._sent[tenant] = state
                self._audience.deliver(users, self._push(state))

    def _push(self, state: tuple[int, int]) -> bytes:
        waiting, oldest = state
        queue = frame_pb2.Queue(
            waiting=waiting,
            oldest_create_time=to_timestamp(oldest) if waiting else None,
            time=to_timestamp(now_micros(self._clock)),
        )
        return encoded(push=frame_pb2.Push(queue=queue))
