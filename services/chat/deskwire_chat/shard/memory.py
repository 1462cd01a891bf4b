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
KEYS: Final = 4_000_000
"""Keys of their messages in memory, some 60 bytes each."""
LONG: Final = 10_000
"""The keys of a conversation with more messages aren't kept: the database is asked about each."""


class _Entry:
    """A conversation in memory, and the hashes of the keys of all its messages; None: it has too many.

    A hash that two keys share costs a question to the database, and no mistake.
    """

    __slots__ = ("conversation", "sent")

    def __init__(self, conversation: Conversation, sent: set[int] | None) -> None:
        self.conversation = conversation
        self.sent = sent

    def may_have(self, key: SentKey) -> bool:
        return self.sent is None or hash(key) in self.sent


class Memory:
    """Conversations as the last commit left them; only the writer changes it, after its commits."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._keys = 0
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
            self._dropped(self._entries.pop(conversation_id, None))

    def forget_partitions(self, numbers: Collection[int]) -> None:
        """Somebody else writes, or wrote, the conversations of these."""
        theirs = [each for each in self._entries if partition_of(each) in numbers]
        self.forget(theirs)

    def update(self, conversation: Conversation, *, opened: bool = False) -> None:
        """Take a conversation as it was committed; one just `opened` has no messages but those that `sent` tells."""
        self.updated(conversation)
        entry = self._entries.get(conversation.conversation_id)
        if entry is not None:
            entry.conversation = conversation
        elif opened:
            self._remember(conversation, set())
        # Else it was forgotten meanwhile, to make room for others.

    def sent(self, keys: Iterable[SentKey]) -> None:
        """Take the keys of committed messages."""
        for key in keys:
            entry = self._entries.get(key[0])
            if entry is None or entry.sent is None:
                continue
            entry.sent.add(hash(key))
            self._keys += 1
            if len(entry.sent) > LONG:
                self._keys -= len(entry.sent)
                entry.sent = None
        self._make_room()

    async def load(self, commands: Sequence[Command]) -> dict[SentKey, Message]:
        """Read the commands' conversations; return those of their messages that are stored already."""
        missing = {c.conversation_id for c in commands}.difference(self._entries)
        again = [c.key for c in commands if isinstance(c, Store) and self._may_have(c)]
        if not missing and not again:
            return {}
        async with self._db.read() as connection:
            if missing:
                loaded = await conversations.get_many(connection, list(missing))
                short = [each.conversation_id for each in loaded if each.head_seq <= LONG]
                sent: dict[str, set[int]] = {each: set() for each in short}
                for key in await messages.sent_keys(connection, short) if short else ():
                    sent[key[0]].add(hash(key))
                for conversation in loaded:
                    self._remember(conversation, sent.get(conversation.conversation_id))
                again += [
                    c.key
                    for c in commands
                    if isinstance(c, Store) and c.conversation_id in missing and self._may_have(c)
                ]
            return await messages.find_sent(connection, again) if again else {}

    def _may_have(self, command: Store) -> bool:
        entry = self._entries.get(command.conversation_id)
        return entry is not None and entry.may_have(command.key)

    def _remember(self, conversation: Conversation, sent: set[int] | None) -> None:
        self._dropped(self._entries.pop(conversation.conversation_id, None))
        self._entries[conversation.conversation_id] = _Entry(conversation, sent)
        self._keys += len(sent or ())
        self._make_room()

    def _make_room(self) -> None:
        """Forget those that were used longest ago."""
        while len(self._entries) > CACHED or (self._keys > KEYS and len(self._entries) > 1):
            self._dropped(self._entries.popitem(last=False)[1])

    def _dropped(self, entry: _Entry | None) -> None:
        if entry is not None:
            self._keys -= len(entry.sent or ())
