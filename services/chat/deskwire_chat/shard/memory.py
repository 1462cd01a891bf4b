"""What the shard remembers: conversations, and which messages they have. The database is asked for the rest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from deskwire_chat.domain import Conversation, Message, partition_of
from deskwire_chat.shard.commands import Command, Store
from deskwire_chat.store import conversations, messages
from deskwire_chat.store.messages import SentKey
from deskwire_common.db import Database

CACHED: Final = 50_000
"""Conversations in memory."""


class _Entry:
    """A conversation in memory, and the keys of all its messages."""

    __slots__ = ("conversation", "sent")

    def __init__(self, conversation: Conversation, sent: set[SentKey]) -> None:
        self.conversation = conversation
        self.sent = sent


class Memory:
    """Conversations as the last commit left them; only the writer changes it, after its commits."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self.updated: Callable[[Conversation], None] = lambda _conversation: None
        """Is told of every conversation that was committed."""

    def __contains__(self, conversation_id: str) -> bool:
        return conversation_id in self._entries

    def get(self, conversation_id: str) -> Conversation | None:
        """Return the conversation itself: copy it before a change that may fail."""
        entry = self._entries.get(conversation_id)
        if entry is None:
            return None
        self._entries.move_to_end(conversation_id)
        return entry.conversation

    def forget(self, conversation_ids: Iterable[str]) -> None:
        """Read these again before the next use."""
        for conversation_id in conversation_ids:
            self._entries.pop(conversation_id, None)

    def forget_partitions(self, numbers: Collection[int]) -> None:
        """Somebody else writes, or wrote, the conversations of these."""
        theirs = [each for each in self._entries if partition_of(each) in numbers]
        self.forget(theirs)

    def update(self, conversation: Conversation) -> None:
        """Take a conversation as it was committed."""
        self.updated(conversation)
        entry = self._entries.get(conversation.conversation_id)
        if entry is None:
            self._remember(conversation, set())
        else:
            entry.conversation = conversation

    def sent(self, keys: Iterable[SentKey]) -> None:
        """Take the keys of committed messages."""
        for key in keys:
            entry = self._entries.get(key[0])
            if entry is not None:
                entry.sent.add(key)

    async def load(self, commands: Sequence[Command]) -> dict[SentKey, Message]:
        """Read the commands' conversations; return those of their messages that are stored already."""
        missing = {c.conversation_id for c in commands}.difference(self._entries)
        again = [c.key for c in commands if isinstance(c, Store) and self._was_sent(c)]
        if not missing and not again:
            return {}
        async with self._db.read() as connection:
            if missing:
                loaded = await conversations.get_many(connection, list(missing))
                sent: dict[str, set[SentKey]] = {each.conversation_id: set() for each in loaded}
                for key in await messages.sent_keys(connection, list(sent)) if sent else ():
                    sent[key[0]].add(key)
                for conversation in loaded:
                    self._remember(conversation, sent[conversation.conversation_id])
                again += [
                    c.key
                    for c in commands
                    if isinstance(c, Store) and c.key in sent.get(c.conversation_id, ())
                ]
            return await messages.find_sent(connection, again) if again else {}

    def _was_sent(self, command: Store) -> bool:
        entry = self._entries.get(command.conversation_id)
        return entry is not None and command.key in entry.sent

    def _remember(self, conversation: Conversation, sent: set[SentKey]) -> None:
        self._entries[conversation.conversation_id] = _Entry(conversation, sent)
        self._entries.move_to_end(conversation.conversation_id)
        if len(self._entries) > CACHED:
            self._entries.popitem(last=False)
