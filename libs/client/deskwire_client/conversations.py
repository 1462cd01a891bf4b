"""Conversations as this client has seen them: messages in order, each once; gaps filled; receipts sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from deskwire.chat.v1 import conversation_pb2
from deskwire.common.v1 import actor_pb2
from deskwire.gateway.v1 import frame_pb2
from deskwire_client.connection import MAX_FRAMES, Connection

_RECEIPT_SECONDS: Final = 0.5


@dataclass(slots=True)
class _Conversation:
    """The state of one conversation: everything up to `seq` was handed out.

    `target` is the newest seq that the server has reported, `early` are messages that came before their turn.
    `unread` were unread up to `counted`, as the server said; `others` are the seqs of others' messages after that.
    """

    epoch: int = 0
    seq: int = 0
    target: int = 0
    early: dict[int, conversation_pb2.Message] = field(default_factory=dict)
    syncing: bool = False
    version: int = 0
    is_open: bool = False
    delivered_reported: int = 0
    read: int = 0
    read_reported: int = 0
    unread: int = 0
    counted: int = 0
    others: list[int] = field(default_factory=list)

    @property
    def is_behind(self) -> bool:
        return bool(self.early) or self.seq < self.target


class Conversations:
    """The conversations of one client."""

    def __init__(
        self, connection: Connection, on_push: Callable[[frame_pb2.Push], None], *, receipts: bool
    ) -> None:
        """`on_push` gets what is handed out; `receipts`: report to the others what was delivered."""
        self._connection = connection
        self._on_push = on_push
        self._receipts = receipts
        self._known: dict[str, _Conversation] = {}
        self._unreported: set[str] = set()
        self._reporting: asyncio.TimerHandle | None = None

    def position(self, conversation_id: str) -> int:
        """Return the seq up to which a conversation was handed out."""
        return self._known.get(conversation_id, _Conversation()).seq

    def unread(self, conversation_id: str) -> int:
        """Return how many messages of a conversation this user hasn't read."""
        found = self._known.get(conversation_id, _Conversation())
        return found.unread + len(found.others)

    def again(self, *, lossless: bool) -> None:
        """A connection opened: ask for what was missed, and repeat receipts that may have been lost."""
        for conversation_id, found in self._known.items():
            found.syncing = False
            # Also ask for what came with Welcome in one read, before there was a socket to ask on. An open conversation
            # may have been closed meanwhile: its Synced shows it.
            if found.is_behind or (found.is_open and not lossless):
                self._sync(conversation_id, found)
            # The last receipts may have been lost with the connection.
            found.delivered_reported = found.read_reported = 0
            self._report(conversation_id)

    def stop(self) -> None:
        """Send no more receipts."""
        if self._reporting is not None:
            self._reporting.cancel()
            self._reporting = None

    # ----------------------------------------------------------------------- frames of the server

    def pushed(self, push: frame_pb2.Push) -> None:
        """Hand out a push in its turn."""
        subject = push.WhichOneof("subject")
        if subject == "message":
            self.arrived(push.message, push.epoch)
        elif subject == "conversation":
            item = push.conversation
            self._altered(item)
            self.behind(item.conversation_id, item.epoch, item.head_seq)
        else:
            if subject == "unread":
                self._counted(
                    self._get(push.unread.conversation_id, push.unread.epoch), push.unread
                )
            self._on_push(push)

    def arrived(self, message: conversation_pb2.Message, epoch: int) -> None:
        """Hand out a message when its turn has come; ask for missing ones before it."""
        found = self._get(message.conversation_id, epoch)
        if message.seq <= found.seq:
            return
        found.early[message.seq] = message
        self._hand_out(found, epoch)
        if found.early:
            self._sync(message.conversation_id, found)

    def head(self, head: frame_pb2.Head) -> None:
        """Note where a conversation stands, and how much of it isn't read."""
        count = frame_pb2.Unread(seq=head.seq, count=head.unread)
        self._counted(self._get(head.conversation_id, head.epoch), count)
        self.behind(head.conversation_id, head.epoch, head.seq)

    def _counted(self, found: _Conversation, told: frame_pb2.Unread) -> None:
        if told.seq >= found.counted:
            found.unread, found.counted = told.count, told.seq
            found.others = [seq for seq in found.others if seq > told.seq]

    def behind(self, conversation_id: str, epoch: int, seq: int) -> None:
        """Note the newest seq of a conversation, and ask for what is missing up to it."""
        found = self._get(conversation_id, epoch)
        found.target = max(found.target, seq)
        if found.seq < seq:
            self._sync(conversation_id, found)

    def synced(self, synced: frame_pb2.Synced) -> None:
        """Hand out what was missing, and ask for more while there is."""
        found = self._get(synced.conversation_id, synced.epoch)
        found.syncing = False
        found.target = max(found.target, synced.head_seq)
        self._counted(found, frame_pb2.Unread(seq=synced.head_seq, count=synced.unread))
        for message in synced.messages:
            if message.seq > found.seq:
                found.early[message.seq] = message
        self._hand_out(found, synced.epoch)
        if synced.HasField("conversation"):
            self._altered(synced.conversation)
        if found.is_behind:
            self._sync(synced.conversation_id, found)

    def sync_failed(self, error: frame_pb2.Error) -> None:
        """Note that a Sync was refused: ask again when the server allows it, or at the next Head or push."""
        found = self._known.get(error.conversation_id)
        if found is None:
            return
        found.syncing = False
        if error.temporary and error.HasField("retry_after"):
            asyncio.get_running_loop().call_later(
                error.retry_after.ToMilliseconds() / 1000, self._catch_up, error.conversation_id
            )

    def _catch_up(self, conversation_id: str) -> None:
        found = self._known[conversation_id]
        if found.is_behind:
            self._sync(conversation_id, found)

    def _get(self, conversation_id: str, epoch: int) -> _Conversation:
        found = self._known.get(conversation_id)
        if found is None or (found.epoch and found.epoch != epoch):
            found = self._known[conversation_id] = _Conversation()
        found.epoch = epoch
        return found

    def _altered(self, item: conversation_pb2.Conversation) -> None:
        """Hand out a conversation, unless this version or a newer one was handed out before."""
        found = self._get(item.conversation_id, item.epoch)
        if item.version > found.version:
            found.version = item.version
            found.is_open = item.state != conversation_pb2.CONVERSATION_STATE_CLOSED
            self._on_push(frame_pb2.Push(conversation=item))

    def _hand_out(self, found: _Conversation, epoch: int) -> None:
        while (message := found.early.pop(found.seq + 1, None)) is not None:
            found.seq += 1
            if found.seq > max(found.counted, found.read) and self._is_of_others(message):
                found.others.append(found.seq)
            self._on_push(frame_pb2.Push(message=message, epoch=epoch))
            self._report(message.conversation_id)

    def _is_of_others(self, message: conversation_pb2.Message) -> bool:
        """Whether a message counts as unread: a text or file of somebody else's; to the desk, not the greeting."""
        me, sender = self._connection.user, message.sender
        desk = me.role != actor_pb2.ROLE_VISITOR
        return (
            message.content.WhichOneof("kind") in {"text", "attachment"}
            and sender.role != actor_pb2.ROLE_UNSPECIFIED
            and (sender.role, sender.subject) != (me.role, me.subject)
            and not (desk and sender.role == actor_pb2.ROLE_SYSTEM)
        )

    def _sync(self, conversation_id: str, found: _Conversation) -> None:
        if found.syncing or not self._connection.is_open:
            return
        found.syncing = True
        sync = frame_pb2.Sync(conversation_id=conversation_id, after_seq=found.seq)
        self._connection.write([frame_pb2.Frame(sync=sync)])

    # ------------------------------------------------------------------------------------- receipts

    def read(self, conversation_id: str, seq: int) -> None:
        """Report to the others that the messages up to `seq` were read; 0: all that were handed out."""
        found = self._known.setdefault(conversation_id, _Conversation())
        found.read = max(found.read, seq or found.seq)
        found.others = [each for each in found.others if each > found.read]
        if found.read >= found.counted:
            found.unread = 0
        self._report(conversation_id)

    def _report(self, conversation_id: str) -> None:
        """Report to the others how far this user has got: soon, and together with other receipts."""
        self._unreported.add(conversation_id)
        if self._reporting is None:
            loop = asyncio.get_running_loop()
            self._reporting = loop.call_later(_RECEIPT_SECONDS, self._report_all)

    def _report_all(self) -> None:
        self._reporting = None
        unreported, self._unreported = self._unreported, set()
        if not self._connection.is_open:
            return
        frames = [
            frame for conversation_id in unreported for frame in self._receipts_of(conversation_id)
        ]
        for start in range(0, len(frames), MAX_FRAMES):
            self._connection.write(frames[start : start + MAX_FRAMES])

    def _receipts_of(self, conversation_id: str) -> list[frame_pb2.Frame]:
        """Return the receipts of a conversation that weren't sent yet; they count as sent from here on."""
        found = self._known.get(conversation_id, _Conversation())
        frames = []
        if self._receipts and found.delivered_reported < found.seq:
            found.delivered_reported = found.seq
            delivered = frame_pb2.Delivered(conversation_id=conversation_id, seq=found.seq)
            frames.append(frame_pb2.Frame(delivered=delivered))
        if found.read_reported < found.read:
            found.read_reported = found.read
            read = frame_pb2.Read(conversation_id=conversation_id, seq=found.read)
            frames.append(frame_pb2.Frame(read=read))
        return frames
