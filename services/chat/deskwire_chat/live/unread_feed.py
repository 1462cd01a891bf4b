"""How much somebody hasn't read, told to them when it changes other than by new messages, which they count themselves.

That is when they have read on, on any of their devices, and when a message was redacted. All counts are made one after
the other, so that an earlier one never comes last.
"""

from __future__ import annotations

import operator
from typing import Final

from deskwire_chat import views
from deskwire_chat.domain.actors import UserKey
from deskwire_chat.domain.conversations import Conversation, participants
from deskwire_chat.live.audience import Audience
from deskwire_chat.store import conversations
from deskwire_chat.store.unread import Reader, unread
from deskwire_common.backlog import Backlog
from deskwire_common.db import AWAY, Database

_EVERYBODY: Final[UserKey] = ("", 0, "")
"""Stands for all participants."""
_WAITING: Final = 50_000
"""Conversations that may wait; the next Head or Synced tells more than that."""


class UnreadFeed:
    """Counts what users haven't read, and sends it to them."""

    def __init__(self, db: Database, audience: Audience) -> None:
        self._db = db
        self._audience = audience
        self._changed = Backlog[str, frozenset[UserKey]](
            self._tell, join=operator.or_, failed="unread_not_counted", outlast=AWAY
        )

    def read_on(self, conversation_id: str, user: UserKey) -> None:
        """Have a user told who has read on in a conversation."""
        self._note(conversation_id, user)

    def redacted(self, conversation_id: str) -> None:
        """Have all participants of a conversation told in which a message was redacted."""
        self._note(conversation_id, _EVERYBODY)

    def _note(self, conversation_id: str, user: UserKey) -> None:
        if len(self._changed) < _WAITING:
            self._changed.add(conversation_id, frozenset({user}))

    async def run(self) -> None:
        """Count and send until cancelled; outlasts a database that is away."""
        await self._changed.run()

    async def _tell(self, some: dict[str, frozenset[UserKey]]) -> None:
        async with self._db.read() as c:
            found = {
                each.conversation_id: each for each in await conversations.get_many(c, list(some))
            }
            readers = [
                reader
                for conversation_id, item in found.items()
                for user, reader in readers_of(self._audience, item)
                if user in some[conversation_id] or _EVERYBODY in some[conversation_id]
            ]
            counts = await unread(c, readers) if readers else {}
        for reader, count in counts.items():
            item = found[reader.conversation_id]
            push = views.frames.unread_push(item, count)
            self._audience.deliver([(item.tenant, reader.role, reader.subject)], push)


def readers_of(audience: Audience, item: Conversation) -> list[tuple[UserKey, Reader]]:
    """Return the participants of a conversation who have a connection."""
    return [
        (user, Reader(item.conversation_id, user[1], user[2], item.head_seq))
        for user in participants(item)
        if audience.connections_of(user)
    ]
