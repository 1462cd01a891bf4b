"""WatchConversation: a conversation's history and then every new message, for callers of any kind.

Committed messages go to the watchers of their conversation, who take them from memory. What a watcher can't get there
(history, or more than its tail holds) it reads from the log, so that a slow reader costs a bounded amount of memory
and loses nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from deskwire.chat.v1 import conversation_pb2
from deskwire.chat.v1 import conversation_service_pb2 as pb
from deskwire_chat import views
from deskwire_chat.domain.actors import Actor
from deskwire_chat.domain.conversations import (
    Conversation,
    State,
    conversation_not_found,
    may_see,
    partition_of,
)
from deskwire_chat.domain.messages import Message
from deskwire_chat.log.commands import Stored
from deskwire_chat.log.commit import Log
from deskwire_chat.owners.errors import NotOwner
from deskwire_chat.store import conversations, messages
from deskwire_common.auth import Principal, current_principal
from deskwire_common.db import Database
from deskwire_common.errors import DeskwireError, OutOfRange, stopping
from deskwire_common.pagination import ANSWER_BYTES, fit
from deskwire_common.quota import Quota

CHECKPOINT: Final = 15.0
"""Seconds of silence after which a watcher is sent its cursor again."""
TAIL: Final = 256
"""Most messages of a watcher that wait in memory; it reads more from the log."""
TAIL_BYTES: Final = 1 << 20
"""Most bytes of their bodies."""
_PAGE: Final = 200
_READS: Final = 4
# Each time after this many checkpoints the log is read, even if no commit was reported.
_LOOK_AGAIN: Final = 4


class _Watch:
    """One caller's watch; `behind`: the log has messages that aren't in `tail`."""

    __slots__ = (
        "_tail_bytes",
        "behind",
        "conversation",
        "error",
        "principal",
        "tail",
        "wake",
        "who",
    )

    def __init__(self, principal: Principal, conversation: Conversation) -> None:
        self.principal = principal
        self.who = Actor.of(principal)
        self.conversation = conversation
        self.tail: deque[Message] = deque()
        self._tail_bytes = 0
        self.behind = True
        self.error: DeskwireError | None = None
        self.wake = asyncio.Event()

    def put(self, item: Message) -> None:
        """Take a committed message."""
        self._tail_bytes += len(item.body)
        if len(self.tail) >= TAIL or self._tail_bytes > TAIL_BYTES:
            self.tail.clear()
            self._tail_bytes = len(item.body)
            self.behind = True
        self.tail.append(item)
        self.wake.set()

    def saw(self, conversation: Conversation) -> None:
        """Take a conversation, unless a newer one is known."""
        if conversation.version > self.conversation.version:
            self.wake.set()
        if conversation.version >= self.conversation.version:
            self.conversation = conversation

    def take(self, cursor: int) -> list[Message]:
        """Return what follows `cursor` in memory, without a hole."""
        found: list[Message] = []
        while self.tail and len(found) < _PAGE:
            item = self.tail[0]
            if item.seq > cursor + 1:
                self.behind = True
                break
            self.tail.popleft()
            self._tail_bytes -= len(item.body)
            if item.seq == cursor + 1:
                found.append(item)
                cursor = item.seq
        return found

    def look(self) -> None:
        """Have the log read."""
        self.behind = True
        self.wake.set()

    def end(self, error: DeskwireError) -> None:
        """End the watch with an error."""
        self.error = error
        self.wake.set()


class Watchers:
    """All watches of this process; they are of conversations in its partitions."""

    def __init__(self, db: Database, admit: Callable[[Principal], None], slots: Quota) -> None:
        self._db = db
        self._admit = admit
        self._slots = slots
        self._watches: dict[str, set[_Watch]] = {}
        self._reads = asyncio.Semaphore(_READS)
        self._stopping = False

    # ------------------------------------------------------------------------------ what happens

    def committed(self, stored: Sequence[Stored]) -> None:
        """Pass committed messages to their watchers; they come in the order of their conversations."""
        if not self._watches:
            return
        for each in stored:
            for watch in self._watches.get(each.message.conversation_id, ()):
                watch.put(each.message)

    def changed(self, conversation: Conversation) -> None:
        """Pass a committed change of a conversation to its watchers."""
        for watch in self._watches.get(conversation.conversation_id, ()):
            # A copy, as the writer goes on changing its own.
            watch.saw(replace(conversation))

    def reached(self, numbers: Collection[int]) -> None:
        """Have the watches of these partitions read the log: it may have messages that nobody reported."""
        for conversation_id, watches in self._watches.items():
            if partition_of(conversation_id) in numbers:
                for watch in watches:
                    watch.look()

    def expel(self) -> None:
        """Have all watches check whether their caller is still admitted."""
        for watch in self._all():
            watch.wake.set()

    def lost(self, numbers: Collection[int]) -> None:
        """End the watches of partitions that have another owner now: their callers must go there."""
        for conversation_id, watches in self._watches.items():
            if partition_of(conversation_id) in numbers:
                for watch in watches:
                    watch.end(NotOwner())

    async def drain(self, seconds: float = 2.0) -> None:
        """End all watches; slow readers get `seconds`."""
        self._stopping = True
        for watch in self._all():
            watch.end(stopping())
        deadline = asyncio.get_running_loop().time() + seconds
        while self._watches and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)

    def _all(self) -> list[_Watch]:
        return [watch for watches in self._watches.values() for watch in watches]

    # ----------------------------------------------------------------------------------- the call

    async def watch(
        self, request: pb.WatchConversationRequest
    ) -> AsyncGenerator[pb.WatchConversationResponse]:
        """Serve one watch of the current principal; see the contract."""
        principal = current_principal()
        if self._stopping:
            raise stopping()
        conversation_id = request.conversation_id.lower()
        with self._slots.taken(principal.tenant, "open streams"):
            conversation = await self._visible(Actor.of(principal), conversation_id)
            _check_cursor(request, conversation)
            if self._stopping:
                # The drain came while this one read: it didn't see it, and would leave it to the transport.
                raise stopping()
            watch = _Watch(principal, conversation)
            self._watches.setdefault(conversation_id, set()).add(watch)
            try:
                async for response in self._follow(watch, request.after_seq):
                    yield response
            finally:
                self._watches[conversation_id].discard(watch)
                if not self._watches[conversation_id]:
                    del self._watches[conversation_id]

    async def _follow(
        self, watch: _Watch, cursor: int
    ) -> AsyncGenerator[pb.WatchConversationResponse]:
        sent_version, silent = 0, 0
        while True:
            watch.wake.clear()
            if watch.error is not None:
                raise watch.error
            self._admit(watch.principal)
            run = await self._read(watch, cursor) if watch.behind else watch.take(cursor)
            shown = fit(views.messages.message(each, watch.who) for each in run)
            watch.behind = watch.behind or len(shown) < len(run)
            cursor = shown[-1].seq if shown else cursor
            known = watch.conversation
            if run or known.version > sent_version or silent:
                yield _response(watch, shown, cursor, changed=known.version > sent_version)
                sent_version = known.version
            if known.state == State.CLOSED and cursor >= known.head_seq and not watch.behind:
                return
            if watch.behind or watch.tail:
                continue
            try:
                async with asyncio.timeout(CHECKPOINT):
                    await watch.wake.wait()
                silent = 0
            except TimeoutError:
                silent += 1
                watch.behind = silent % _LOOK_AGAIN == 0

    async def _read(self, watch: _Watch, cursor: int) -> list[Message]:
        """Return messages after `cursor` from the log, and read the conversation."""
        # Commits from now on go to the tail, or set this again.
        watch.behind = False
        known = watch.conversation
        found = await self._visible(watch.who, known.conversation_id)
        async with self._reads, self._db.read() as c:
            run = await messages.after_seq(
                c, known.conversation_id, seq=cursor, limit=_PAGE, max_bytes=ANSWER_BYTES
            )
        watch.saw(found)
        # The limit of bytes may have ended the run.
        watch.behind = watch.behind or (bool(run) and run[-1].seq < found.head_seq)
        return run

    async def _visible(self, who: Actor, conversation_id: str) -> Conversation:
        async with self._reads, self._db.read() as c:
            found = await conversations.get(c, who.tenant, conversation_id)
        if found is None or not may_see(found, who):
            raise conversation_not_found(conversation_id)
        return found


class TappedLog:
    """The writer's Log, which passes commits to the watchers too."""

    def __init__(self, log: Log, watchers: Watchers) -> None:
        self._log = log
        self._watchers = watchers

    def committed(self, stored: Sequence[Stored]) -> None:
        """Pass committed messages on to both."""
        self._log.committed(stored)
        self._watchers.committed(stored)

    def imported(self, partition: int, head: int) -> None:
        """Tell the log: the watchers of an imported conversation hear that it changed, and read it."""
        self._log.imported(partition, head)

    def published(self, numbers: Iterable[int]) -> dict[int, int]:
        """Ask the log."""
        return self._log.published(numbers)

    def reached(self, heads: Mapping[int, int]) -> None:
        """Tell both how far the log goes."""
        self._log.reached(heads)
        self._watchers.reached(heads)

    def saved(self, published: Mapping[int, int]) -> None:
        """Tell the log."""
        self._log.saved(published)


def _check_cursor(request: pb.WatchConversationRequest, conversation: Conversation) -> None:
    """Raise OutOfRange for a cursor of another history than the conversation's."""
    if request.epoch not in {0, conversation.epoch} or request.after_seq > conversation.head_seq:
        raise OutOfRange(
            "the cursor is of another history of the conversation; begin with after_seq 0",
            metadata={"oldest_cursor": "0", "epoch": str(conversation.epoch)},
        )


def _response(
    watch: _Watch, messages: Sequence[conversation_pb2.Message], cursor: int, *, changed: bool
) -> pb.WatchConversationResponse:
    conversation = watch.conversation
    response = pb.WatchConversationResponse(
        epoch=conversation.epoch, cursor=cursor, messages=messages
    )
    if changed:
        head = max(conversation.head_seq, cursor)
        response.conversation.CopyFrom(
            views.messages.conversation(replace(conversation, head_seq=head))
        )
    return response
