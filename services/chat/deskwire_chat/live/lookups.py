"""Look-ups: conversations that users name, from memory or the database.

A frame may name any conversation. One that isn't there, or that its user may not see, costs a look-up in vain; then
nothing else is looked up for that user until a second is over (turns.Turns).
"""

from __future__ import annotations

import asyncio
from typing import Final

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_chat.domain.conversations import Conversation, conversation_not_found, may_see
from deskwire_chat.live.stream import Connection
from deskwire_chat.log.memory import Memory
from deskwire_chat.store import conversations
from deskwire_common.db import Database
from deskwire_common.errors import ResourceExhausted

REST: Final = 1.0
"""Seconds for which a user rests after a look-up in vain."""


def too_much_waits() -> ResourceExhausted:
    """Return the error for a user of whom too much waits already."""
    return ResourceExhausted(
        "too much of what you have asked for waits; ask for one thing after another",
        reason=reasons.ERROR_REASON_RATE_LIMITED,
        retry_after=REST,
    )


class Lookups:
    """Finds the conversations that users name."""

    def __init__(self, db: Database, memory: Memory, reads: asyncio.Semaphore) -> None:
        """`reads` bounds how many reads for links run at once."""
        self._db = db
        self._memory = memory
        self._reads = reads

    def known(self, connection: Connection, conversation_id: str) -> Conversation | None:
        """Return a conversation that is in memory, None for any other; it is memory's own, so don't change it.

        Raises NotFound when the connection's user may not see it.
        """
        found = self._memory.get(conversation_id)
        if found is not None and not may_see(found, connection.who):
            raise conversation_not_found(conversation_id)
        return found

    async def find(self, connection: Connection, conversation_id: str) -> Conversation | None:
        """Return a conversation that its user may see; None when it was looked up in vain.

        Raises as `known` does, and the errors of the database.
        """
        found = self.known(connection, conversation_id)
        if found is None:
            async with self._reads, self._db.read() as c:
                found = await conversations.get(c, connection.who.tenant, conversation_id)
        return found if found is not None and may_see(found, connection.who) else None
