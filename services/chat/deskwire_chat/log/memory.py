"""The writer's memory: conversations, and which messages they have. The rest is read from the database."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_chat.domain.conversations import Conversation, partition_of
from deskwire_chat.domain.messages import Message
from deskwire_chat.log.commands import Command, Put
from deskwire_chat.store import conversations, messages
from deskwire_chat.store.messages import SentKey
from deskwire_common.db import Database

CACHED: Final = 50_000
"""Most conversations in memory."""
KEYS: Final = 4_000_000
"""Most keys of their messages in memory, some 60 bytes each."""
LONG: Final = 10_000
"""The keys of a conversation with more messages aren't kept: each is looked up in the database."""


@dataclass(frozen=True, slots=True)
class Known:
    """What commands refer to: their conversations (copy before a change), and their messages that are stored already.

    It lasts as long as its group, whatever memory forgets meanwhile to make room.
    """

    conversations: Mapping[str, Conversation]
    sent: Mapping[SentKey, Message]


class _Entry:
    """A conversation in memory, and the hashes of the keys of all its messages; None: there are too many.

    Two keys with the same hash cost a query of the database, but cause no mistake.
    """

    __slots__ = ("conversation", "sent")

    def __init__(self, conversation: Conversation, sent: set[int] | None) -> None:
        self.conversation = conversation
        self.sent = sent

    def may_have(self, key: SentKey) -> bool:
        return self.sent is None or hash(key) in self.sent


class Memory:
    """Conversations as the last commit left them; only the writer changes it, after its commits."""

    def __init__(
        self, db: Database, updated: Callable[[Conversation], None] = lambda _conversation: None
    ) -> None:
        """`updated` is called with every conversation that was committed."""
        self._db = db
        self._updated = updated
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._keys = 0

    def get(self, conversation_id: str) -> Conversation | None:
        """Return the conversation itself: copy it before a change that may fail."""
        entry = self._entries.get(conversation_id)
        if entry is None:
            return None
        self._entries.move_to_end(conversation_id)
        return entry.conversation

    def forget(self, conversation_ids: Iterable[str]) -> None:
        """Have these conversations read again before the next use."""
        for conversation_id in conversation_ids:
            self._dropped(self._entries.pop(conversation_id, None))

    def forget_partitions(self, numbers: Collection[int]) -> None:
        """Forget the conversations of these partitions, as another process writes, or wrote, them."""
        theirs = [each for each in self._entries if partition_of(each) in numbers]
        self.forget(theirs)

    def update(self, conversation: Conversation, *, opened: bool = False) -> None:
        """Take a committed conversation; one just `opened` has only the messages that `sent` reports."""
        self._updated(conversation)
        entry = self._entries.get(conversation.conversation_id)
        if entry is not None:
            entry.conversation = conversation
        elif opened:
            self._remember(conversation, set())
        # Otherwise the conversation was forgotten meanwhile, to make room for others.

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

    async def load(self, commands: Sequence[Command]) -> Known:
        """Return what these commands refer to; read what isn't in memory."""
        entries: dict[str, _Entry] = {}
        missing: list[str] = []
        for conversation_id in {c.conversation_id for c in commands}:
            entry = self._entries.get(conversation_id)
            if entry is None:
                missing.append(conversation_id)
            else:
                self._entries.move_to_end(conversation_id)
                entries[conversation_id] = entry
        stores = [c for c in commands if isinstance(c, Put)]
        sent: dict[SentKey, Message] = {}
        if missing or _doubtful(stores, entries):
            async with self._db.read() as connection:
                if missing:
                    entries |= await self._read(connection, missing)
                if again := _doubtful(stores, entries):
                    sent = await messages.find_sent(connection, again)
        return Known({key: entry.conversation for key, entry in entries.items()}, sent)

    async def _read(
        self, connection: AsyncConnection, conversation_ids: Sequence[str]
    ) -> dict[str, _Entry]:
        loaded = await conversations.get_many(connection, conversation_ids)
        short = [each.conversation_id for each in loaded if each.head_seq <= LONG]
        sent: dict[str, set[int]] = {each: set() for each in short}
        for key in await messages.sent_keys(connection, short) if short else ():
            sent[key[0]].add(hash(key))
        return {
            each.conversation_id: self._remember(each, sent.get(each.conversation_id))
            for each in loaded
        }

    def _remember(self, conversation: Conversation, sent: set[int] | None) -> _Entry:
        self._dropped(self._entries.pop(conversation.conversation_id, None))
        entry = self._entries[conversation.conversation_id] = _Entry(conversation, sent)
        self._keys += len(sent or ())
        self._make_room()
        return entry

    def _make_room(self) -> None:
        """Forget the conversations that were used longest ago."""
        while len(self._entries) > CACHED or (self._keys > KEYS and len(self._entries) > 1):
            self._dropped(self._entries.popitem(last=False)[1])

    def _dropped(self, entry: _Entry | None) -> None:
        if entry is not None:
            self._keys -= len(entry.sent or ())


def _doubtful(stores: Iterable[Put], entries: Mapping[str, _Entry]) -> list[SentKey]:
    """Return the keys of the messages that may be stored already."""
    return [
        c.key
        for c in stores
        if (entry := entries.get(c.conversation_id)) is not None and entry.may_have(c.key)
    ]
