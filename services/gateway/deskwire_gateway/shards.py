"""The shards of chat: a link to each, and which of them owns a conversation.

Chat says who owns what, and under which term; of two words the later term counts. What names a conversation goes to
its owner. A Send is kept until its answer: when its owner is another one, or a link is new, all un-answered ones are
sent again in their order, before anything newer; chat stores each once, and takes nothing that was sent under an
earlier term. So no change of owners loses, doubles or reorders.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final
from zlib import crc32

import grpc

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire.shard.v1 import shard_service_pb2 as pb
from deskwire_common.auth import TokenSigner
from deskwire_common.errors import DeskwireError, InvalidArgument, ResourceExhausted, Unavailable
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_gateway.link import Link, up_item
from deskwire_gateway.session import Session
from deskwire_gateway.sessions import Sessions
from deskwire_wire.errors import error_batch
from deskwire_wire.protobytes import nested, varint

_LOOK_SECONDS: Final = 1.0
_PATIENCE: Final = 10.0
"""Seconds until a Send that nobody takes is given back to its client."""
_MOST_AGAIN: Final = 2
"""How often an item is said again that was on a link when that broke: it may be what breaks them."""
_RESTARTS_SECONDS: Final = 60.0
"""Seconds for which a Send is said again all the same, as long as nothing says that its link broke on an item."""
_AGAIN: Final = 0.05
"""Seconds after a link's end until the next try."""


@dataclass(frozen=True, slots=True)
class _Owned:
    """Who has a partition."""

    term: int
    address: str


@dataclass(slots=True)
class _Pending:
    """A Send without an answer.

    `head` is its encoded LinkSend without the term.
    `not_taken`: the shard that it was sent to isn't its owner. `behind`: an earlier one of its line was refused for
    now, so that it mustn't be stored before that one comes again. `breaks`: so many links broke while it was on them.
    """

    session: Session
    conversation_id: str
    client_msg_id: str
    hash: int
    head: bytes
    since: float
    not_taken: bool = False
    behind: bool = False
    breaks: int = 0

    def item(self, term: int) -> bytes:
        """Return it as it goes to an owner of this term."""
        # Fields items, send and term of LinkRequest, LinkUpItem and LinkSend.
        return nested(b"\x0a", nested(b"\x32", self.head + b"\x20" + varint(term)))


@dataclass(slots=True)
class _Asked:
    """A Sync without an answer; `link` is the one that it was said on."""

    session: Session
    conversation_id: str
    item: bytes
    link: Link | None
    breaks: int = 0


class Shards:
    """The way to chat (session.Chat) of this worker."""

    def __init__(
        self,
        seed: str,
        connect: Callable[[str], grpc.aio.Channel],
        signer: TokenSigner,
        sessions: Sessions,
        worker_id: str,
    ) -> None:
        """`seed` leads to any shard, which knows the others."""
        self._seed = seed
        self._connect = connect
        self._signer = signer
        self._sessions = sessions
        self._worker_id = worker_id
        self._generation = 0
        self._links: dict[str, Link] = {}
        self._calling: dict[str, tuple[Link, asyncio.Task[None]]] = {}
        self._views: dict[Link, set[str]] = {}
        self._wanted: set[str] = set()
        self._owned: dict[int, _Owned] = {}
        self._count = 1
        self._ids = 0
        self._sends: dict[int, _Pending] = {}
        self._lines: dict[str, list[int]] = {}
        self._syncs: dict[int, _Asked] = {}
        self._wake = asyncio.Event()

    @property
    def pending_count(self) -> int:
        """How many Sends have no answer yet."""
        return len(self._sends)

    # -------------------------------------------------------------------------- what goes to all

    def attach(self, session: Session) -> None:
        """Tell chat of a connection that said Hello."""
        self._to_all(_attach(session))

    def detach(self, session: Session) -> None:
        """Tell chat that a connection is gone. Its Sends stay: they may have been stored."""
        self._to_all(up_item(detach=pb.Detach(connection_id=session.number)))

    def park(self, session: Session) -> None:
        """Tell chat that a connection broke and may come back."""
        self._to_all(up_item(park=pb.Park(connection_id=session.number)))

    def unpark(self, session: Session) -> None:
        """Tell chat that a connection is there again."""
        self._to_all(up_item(unpark=pb.Unpark(connection_id=session.number)))

    def _to_all(self, item: bytes) -> None:
        for link in self._links.values():
            link.put(item)

    # -------------------------------------------------------- what goes to a conversation's owner

    def receipt(self, session: Session, conversation_id: str, *, delivered: int, read: int) -> None:
        """Pass on how far a user has got. On a broken stream it is lost; the client says the last one again."""
        receipt = pb.LinkReceipt(
            connection_id=session.number,
            conversation_id=conversation_id,
            delivered_seq=delivered,
            read_seq=read,
        )
        self._to_owner(conversation_id, up_item(receipt=receipt))

    def typing(self, session: Session, typing: frame_pb2.Typing) -> None:
        """Pass on that a user writes."""
        item = pb.LinkTyping(
            connection_id=session.number,
            conversation_id=typing.conversation_id,
            typing=typing.typing,
        )
        self._to_owner(typing.conversation_id, up_item(typing=item))

    def _to_owner(self, conversation_id: str, item: bytes) -> None:
        """Pass on what nobody misses when there is no owner for a moment."""
        owner = self._owner_of(crc32(conversation_id.encode()))
        if owner is not None:
            owner[0].put(item)

    def _owner_of(self, number: int) -> tuple[Link, int] | None:
        """Return the open link to a hash's owner, and the term."""
        owned = self._owned.get(number % self._count)
        link = self._links.get(owned.address) if owned is not None else None
        return None if link is None or owned is None else (link, owned.term)

    # ----------------------------------------------------------------------- what is kept, with ids

    def send(self, session: Session, send: frame_pb2.Send) -> None:
        """Pass a message on; it is kept until its answer."""
        self._ids += 1
        conversation_id = send.conversation_id
        pending = _Pending(
            session,
            conversation_id,
            send.client_msg_id,
            crc32(conversation_id.encode()),
            # Fields 1 to 3 of LinkSend, by hand: this is the hot path.
            b"\x08"
            + varint(session.number)
            + b"\x10"
            + varint(self._ids)
            + nested(b"\x1a", send.SerializeToString()),
            asyncio.get_running_loop().time(),
        )
        self._sends[self._ids] = pending
        line = self._lines.get(conversation_id)
        if line is None:
            self._lines[conversation_id] = [self._ids]
        else:
            line.append(self._ids)
        owner = self._owner_of(pending.hash)
        if owner is not None:
            owner[0].put(pending.item(owner[1]))

    def sync(self, session: Session, sync: frame_pb2.Sync) -> None:
        """Pass a Sync on; it is asked again after a break. Any shard can answer, the owner knows best."""
        self._ids += 1
        said = pb.LinkSync(connection_id=session.number, sync=sync, send_id=self._ids)
        item = up_item(sync=said)
        owner = self._owner_of(crc32(sync.conversation_id.encode()))
        link = owner[0] if owner is not None else next(iter(self._links.values()), None)
        self._syncs[self._ids] = _Asked(session, sync.conversation_id, item, link)
        if link is not None:
            link.put(item)

    def answered(self, item: pb.LinkDownItem) -> None:
        """A Send or a Sync has its answer."""
        if item.not_owner:
            if (kept := self._sends.get(item.send_id)) is not None:
                kept.not_taken = True
                if kept.behind:
                    self._give_back(item.send_id, _line_held())
            return
        if self._syncs.pop(item.send_id, None) is not None:
            return
        pending = self._forget(item.send_id)
        if pending is not None and item.held:
            self._hold(item.send_id, pending)

    def _forget(self, send_id: int) -> _Pending | None:
        pending = self._sends.pop(send_id, None)
        if pending is None:
            return None
        line = self._lines[pending.conversation_id]
        if len(line) == 1:
            del self._lines[pending.conversation_id]
        else:
            line.remove(send_id)
        # A resumed session counts from 0 again.
        pending.session.unacked = max(0, pending.session.unacked - 1)
        return pending

    def _hold(self, send_id: int, pending: _Pending) -> list[int]:
        """A Send was refused for now: nothing later of its line may be stored before it comes again."""
        session = pending.session
        if session.held is None:
            session.held = {}
        session.held.setdefault(pending.conversation_id, pending.client_msg_id)
        behind = [
            each
            for each in self._lines.get(pending.conversation_id, ())
            if each > send_id and self._sends[each].session is session
        ]
        for each in behind:
            self._sends[each].behind = True
        return behind

    def _give_back(self, send_id: int, error: DeskwireError) -> None:
        pending = self._forget(send_id)
        if pending is None:
            return
        self._refuse(pending.session, error, pending.conversation_id, pending.client_msg_id)

    def _refuse(
        self, session: Session, error: DeskwireError, conversation_id: str, client_msg_id: str = ""
    ) -> None:
        METRICS.gateway_refused.labels(error.reason_name).inc()
        if not session.closed:
            batch = error_batch(error, client_msg_id=client_msg_id, conversation_id=conversation_id)
            self._sessions.push(session, batch)

    def _give_up(self) -> None:
        """Give Sends back that have waited too long for somebody to take them."""
        before = asyncio.get_running_loop().time() - _PATIENCE
        late: list[int] = []
        for send_id, pending in self._sends.items():
            if pending.since > before:
                break
            if pending.not_taken or self._owner_of(pending.hash) is None:
                late.append(send_id)
        for send_id in late:
            self._give_back_line(send_id)

    def _give_back_line(self, send_id: int) -> None:
        """Give a Send back that can't be stored now, and what is behind it in its line."""
        pending = self._sends.get(send_id)
        if pending is None:
            return
        if pending.behind:
            self._give_back(send_id, _line_held())
            return
        self._give_back(
            send_id,
            Unavailable(
                "nobody can store the message now; send it again",
                reason=reasons.ERROR_REASON_NOT_OWNER,
                retry_after=1.0,
            ),
        )
        for each in self._hold(send_id, pending):
            self._give_back(each, _line_held())

    async def drain(self, seconds: float = 5.0) -> None:
        """Wait for the answers to what was sent, for a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._sends:
                    await asyncio.sleep(0.01)

    # ---------------------------------------------------------------------------------------- life

    async def run(self) -> None:
        """Keep a link to each shard until cancelled."""
        try:
            while True:
                self._call_missing()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._wake.wait()
                self._wake.clear()
                self._give_up()
        finally:
            tasks = [task for _, task in self._calling.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _call_missing(self) -> None:
        """Call shards that have no link, and the seed while there is none at all."""
        if self._views:
            self._wanted = set().union(*self._views.values())
        targets = self._wanted - set(self._links)
        if not self._links:
            targets.add(self._seed)
        for target, (link, task) in self._calling.items():
            if target not in targets and not link.is_open:
                task.cancel()
        for target in targets:
            if target not in self._calling:
                self._call(target, 0.0)

    def _call(self, target: str, pause: float) -> None:
        link = Link(target, self._connect, self._signer, self._sessions, self)
        task = asyncio.create_task(link.run(pause), name=f"link-{target}")
        self._calling[target] = (link, task)
        task.add_done_callback(lambda done: self._ended(link, done))

    def _ended(self, link: Link, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            get_logger().error("link_failed", target=link.target, exc_info=error)
        del self._calling[link.target]
        self._views.pop(link, None)
        if link.address and self._links.get(link.address) is link:
            del self._links[link.address]
            METRICS.gateway_links.set(len(self._links))
            self._after_break(link)
            self._sync_again(link)
        if not task.cancelled() and (link.target in self._wanted or not self._links):
            self._call(link.target, _AGAIN)
        self._wake.set()

    def _sync_again(self, lost: Link | None, now: Link | None = None) -> None:
        """Ask another shard what was asked on a link that is lost, or what nobody could be asked."""
        other = now or next(iter(self._links.values()), None)
        for send_id, asked in list(self._syncs.items()):
            if asked.session.closed:
                del self._syncs[send_id]
            elif asked.link is lost:
                asked.link = other
                if other is not None and now is None:
                    other.put(asked.item)

    def _after_break(self, link: Link) -> None:
        """Give up what was on a link that is lost too often: said again, it might break the next one for everybody.

        A shard that is killed breaks its links as well. A Sync is given up after few of those, as its client asks
        again; a Send only when they don't end, or when gRPC says that an item was to blame.
        """
        is_item = link.ended_with is grpc.StatusCode.RESOURCE_EXHAUSTED
        for sync_id, asked in list(self._syncs.items()):
            if asked.link is link:
                asked.breaks += 1
                if asked.breaks > _MOST_AGAIN:
                    del self._syncs[sync_id]
                    error = _answer_too_large() if is_item else _not_answered()
                    self._refuse(asked.session, error, asked.conversation_id)
        before = asyncio.get_running_loop().time() - _RESTARTS_SECONDS
        for send_id, pending in list(self._sends.items()):
            owned = self._owned.get(pending.hash % self._count)
            if owned is None or owned.address != link.address or pending.not_taken:
                continue
            pending.breaks += 1
            if pending.breaks > _MOST_AGAIN and (is_item or pending.since < before):
                self._give_back_line(send_id)

    # --------------------------------------------------------------------------------------- owners

    def hello(self) -> bytes:
        """Return the first item of a stream."""
        self._generation += 1
        hello = pb.LinkHello(worker_id=self._worker_id, generation=self._generation)
        return up_item(hello=hello)

    def opened(self, link: Link, owners: pb.Owners) -> Iterable[bytes] | None:
        """A shard has answered: return the snapshot that it is told first, None when it has a link already."""
        if owners.address in self._links:
            return None
        self.told(link, owners)
        self._sync_again(None, link)
        mine = [
            (send_id, pending)
            for send_id, pending in self._sends.items()
            if (owned := self._owned.get(pending.hash % self._count)) is not None
            and owned.address == owners.address
        ]
        first = [
            up_item(snapshot_begin=pb.SnapshotBegin()),
            *(_attach(session) for session in self._sessions.by_number.values()),
            *self._again(mine),
            *(asked.item for asked in self._syncs.values() if asked.link is link),
            up_item(snapshot_end=pb.SnapshotEnd()),
        ]
        self._links[owners.address] = link
        METRICS.gateway_links.set(len(self._links))
        get_logger().info("link_open", target=link.target, shard=owners.address)
        self._wake.set()
        return first

    def told(self, link: Link, owners: pb.Owners) -> None:
        """Who owns what has changed, as a shard sees it."""
        self._views[link] = {shard.address for shard in owners.shards}
        self._count = owners.partition_count or self._count
        moved: set[int] = set()
        for shard in owners.shards:
            for each in shard.partitions:
                known = self._owned.get(each.number)
                if (
                    known is None
                    or each.term > known.term
                    # A database that was restored from a backup has older terms.
                    or (
                        each.term < known.term
                        and shard.address == owners.address
                        and known.address not in self._links
                    )
                ):
                    self._owned[each.number] = _Owned(each.term, shard.address)
                    moved.add(each.number)
        if moved:
            self._send_again(moved)
        self._wake.set()

    def _send_again(self, moved: set[int]) -> None:
        """Send what is un-answered of some partitions to their new owners, in order."""
        per_link: dict[Link, list[tuple[int, _Pending]]] = {}
        for send_id, pending in self._sends.items():
            if pending.hash % self._count in moved:
                owner = self._owner_of(pending.hash)
                if owner is not None:
                    per_link.setdefault(owner[0], []).append((send_id, pending))
        for link, entries in per_link.items():
            for item in self._again(entries):
                link.put(item)

    def _again(self, entries: Iterable[tuple[int, _Pending]]) -> list[bytes]:
        """Return Sends as they go to their owner of now.

        A connection that is gone is attached for its un-answered Sends, which then are stored as they should be.
        """
        items: list[bytes] = []
        gone: dict[int, None] = {}
        for send_id, pending in entries:
            if pending.behind:
                self._give_back(send_id, _line_held())
                continue
            number = pending.session.number
            if number not in self._sessions.by_number and number not in gone:
                gone[number] = None
                items.append(_attach(pending.session))
            pending.not_taken = False
            items.append(pending.item(self._owned[pending.hash % self._count].term))
        items += [up_item(detach=pb.Detach(connection_id=number)) for number in gone]
        return items


def _line_held() -> ResourceExhausted:
    return ResourceExhausted(
        "an earlier message was refused for now; send that one again first",
        reason=reasons.ERROR_REASON_LINE_HELD,
        retry_after=1.0,
    )


def _answer_too_large() -> InvalidArgument:
    return InvalidArgument(
        "the answer is larger than can be sent; Sync with a smaller limit",
        reason=reasons.ERROR_REASON_TOO_LARGE,
    )


def _not_answered() -> Unavailable:
    return Unavailable("history can't be read now; Sync again", retry_after=5.0)


def _attach(session: Session) -> bytes:
    who = session.principal
    assert who is not None  # noqa: S101 - only sessions that said Hello
    attach = pb.Attach(
        connection_id=session.number,
        tenant_id=who.tenant,
        user=session.actor(),
        device_id=session.device_id,
        connect_micros=int(session.connected_at * 1_000_000),
        parked=session.parked > 0,
    )
    if who.profile is not None:
        attach.profile.email = who.profile.email
        attach.profile.mobile = who.profile.mobile
        for system, value in who.profile.ids:
            attach.profile.ids.add(namespace=system, value=value)
    return up_item(attach=attach)
