"""How much somebody hasn't read, told to them when it changes other than by new messages, which they count themselves.

That is when they have read on, on any of their devices, and when a message was redacted. All counts are made one after
the other, so that an earlier one never comes last.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection
from typing import Final

from deskwire_chat import views
from deskwire_chat.domain.actors import UserKey
from deskwire_chat.domain.conversations import participants
from deskwire_chat.live.audience import Audience
from deskwire_chat.store import conversations
from deskwire_chat.store.unread import Reader, unread
from deskwire_common.db import AWAY, Database
from deskwire_common.loops import every

_RETRY_SECONDS: Final = 1.0
_CHUNK: Final = 100
_Change = tuple[str, UserKey | None]
"""A conversation, and the only user whose count changed in it."""

_WAITING: Final = 50_000
"""Changes that may wait; the next Head or Synced tells more than that."""


class UnreadFeed:
    """Counts what users haven't read, and sends it to them."""

    def __init__(self, db: Database, audience: Audience) -> None:
        self._db = db
        self._audience = audience
        self._changed: dict[_Change, None] = {}
        self._wake = asyncio.Event()

    def read_on(self, conversation_id: str, user: UserKey) -> None:
        """Have a user told who has read on in a conversation."""
        self._note(conversation_id, user)

    def redacted(self, conversation_id: str) -> None:
        """Have all participants of a conversation told in which a message was redacted."""
        self._note(conversation_id, None)

    def _note(self, conversation_id: str, user: UserKey | None) -> None:
        if len(self._changed) < _WAITING:
            self._changed[conversation_id, user] = None
            self._wake.set()

    async def run(self) -> None:
        """Count and send until cancelled; outlasts a database that is away."""
        await every(
            _RETRY_SECONDS, self._round, failed="unread_not_counted", outlast=AWAY, wake=self._wake
        )

    async def _round(self) -> None:
        while self._changed:
            some = dict.fromkeys(itertools.islice(self._changed, _CHUNK))
            for each in some:
                del self._changed[each]
            try:
                await self._tell(some)
            except BaseException:
                self._changed |= some
                raise

    async def _tell(self, some: Collection[_Change]) -> None:
        ids = list({conversation_id for conversation_id, _ in some})
        async with self._db.read() as c:
            found = {each.conversation_id: each for each in await conversations.get_many(c, ids)}
            readers = [
                Reader(conversation_id, user[1], user[2], item.head_seq)
                for conversation_id, item in found.items()
                for user in participants(item)
                if ((conversation_id, user) in some or (conversation_id, None) in some)
                and self._audience.connections_of(user)
            ]
            counts = await unread(c, readers) if readers else {}
        for reader, count in counts.items():
            item = found[reader.conversation_id]
            push = views.frames.unread_push(item, count)
            self._audience.deliver([(item.tenant, reader.role, reader.subject)], push)
