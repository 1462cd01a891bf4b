"""Who of an open conversation is connected: the others learn of each change; nothing is stored.

A user who connects is announced at once, with the Heads; a user who leaves only after a while, as most of them are back
in a moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from deskwire.common.v1 import actor_pb2
from deskwire.gateway.v1 import frame_pb2
from deskwire_chat.domain.actors import ActorRole, UserKey
from deskwire_chat.domain.conversations import Conversation, participants
from deskwire_chat.live.audience import Audience
from deskwire_chat.live.stream import Connection
from deskwire_chat.store import conversations
from deskwire_common.db import Database
from deskwire_common.errors import DeskwireError
from deskwire_common.logging import get_logger
from deskwire_common.loops import every
from deskwire_wire.batches import encoded

_GRACE_SECONDS: Final = 2.0
_TICK_SECONDS: Final = 0.5
_CHUNK: Final = 200


class Presence:
    """Tells the participants of a conversation when one of them connects or leaves."""

    def __init__(
        self,
        db: Database,
        audience: Audience,
        *,
        is_ours: Callable[[Conversation], bool] = lambda _item: True,
    ) -> None:
        """`is_ours`: whether this process tells of a conversation; among several processes only its owner does."""
        self._db = db
        self._audience = audience
        self._is_ours = is_ours

    def frames(
        self, connection: Connection, theirs: Iterable[Conversation]
    ) -> list[frame_pb2.Frame]:
        """Return frames that tell a user who connected about the other participants."""
        return [
            frame_pb2.Frame(presence=self._presence(item, party))
            for item in theirs
            for party in participants(item)
            if party != connection.user
        ]

    def connected(self, connection: Connection, theirs: Iterable[Conversation]) -> None:
        """Tell the other participants that a user is connected."""
        for item in theirs:
            self._tell(item, connection.user)

    def reconnected(self, connection: Connection) -> None:
        """Tell the other participants that a user is connected again, when it is the user's turn."""
        work = partial(self._reconnected, connection)
        connection.stream.turns.ask(connection.who.tenant, connection.user, work)

    async def _reconnected(self, connection: Connection) -> float:
        found = await self._open_of([connection.user])
        self.connected(connection, found.get(connection.user, ()))
        return 0

    def introduce(self, conversation: Conversation) -> None:
        """Tell the participants of a conversation about each other, as one of them is new."""
        for party in participants(conversation):
            self._tell(conversation, party)

    async def run(self) -> None:
        """Tell of users who left, until cancelled."""
        await every(_TICK_SECONDS, self._round, failed="presence_not_sent", at_once=False)

    async def _round(self) -> None:
        gone: dict[UserKey, None] = {}
        left = self._audience.left
        until = asyncio.get_running_loop().time() - _GRACE_SECONDS
        while left and left[0][0] <= until and len(gone) < _CHUNK:
            user = left.popleft()[1]
            if not self._audience.is_present(user):
                gone[user] = None
        for user, theirs in (await self._open_of(gone)).items():
            for item in theirs:
                self._tell(item, user)

    async def _open_of(self, users: Iterable[UserKey]) -> dict[UserKey, list[Conversation]]:
        groups: dict[tuple[str, int], list[str]] = {}
        for tenant, role, subject in users:
            groups.setdefault((tenant, role), []).append(subject)
        found: dict[UserKey, list[Conversation]] = {}
        try:
            for (tenant, role), subjects in groups.items():
                async with self._db.read() as c:
                    theirs = await conversations.open_of(c, tenant, ActorRole(role), subjects)
                found |= {
                    (tenant, role, subject): [each for each in items if self._is_ours(each)]
                    for subject, items in theirs.items()
                }
        except (DeskwireError, SQLAlchemyError) as error:
            # The next connection that opens or closes corrects this.
            get_logger().warning("presence_not_sent", error=type(error).__name__)
        return found

    def _tell(self, item: Conversation, user: UserKey) -> None:
        batch = encoded(presence=self._presence(item, user))
        others = [each for each in participants(item) if each != user]
        self._audience.deliver(others, batch, ephemeral=True)

    def _presence(self, item: Conversation, user: UserKey) -> frame_pb2.Presence:
        return frame_pb2.Presence(
            conversation_id=item.conversation_id,
            user=actor_pb2.Actor(role=actor_pb2.Role.ValueType(user[1]), subject=user[2]),
            online=self._audience.is_present(user),
        )
