"""Sends on their way to chat: each is kept until its answer.

When a conversation has another owner, or a link is new, all un-answered Sends are sent again in their order, before
anything newer; chat stores each once, and takes nothing that was sent under an earlier term. So no change of owners
loses, doubles or reorders.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire.shard.v1 import shard_service_pb2 as pb
from deskwire_common.errors import DeskwireError, Unavailable
from deskwire_common.lines import line_held
from deskwire_common.metrics import METRICS
from deskwire_gateway.admission import Admission
from deskwire_gateway.items import attach, detach
from deskwire_gateway.link import Link
from deskwire_gateway.owner_map import OwnerMap
from deskwire_gateway.registry import Registry
from deskwire_gateway.session import Session
from deskwire_gateway.syncs import Syncs
from deskwire_wire.errors import error_batch
from deskwire_wire.protobytes import nested, varint

MAX_REPEATS: Final = 2
"""How often a Send is sent again after its link broke: the Send may be what breaks links."""
_PATIENCE: Final = 10.0
"""Seconds until a Send that nobody takes is given back to its client."""
_RESTARTS: Final = 60.0
"""Seconds for which a Send is sent again, however many links broke, while gRPC blames no item."""


@dataclass(slots=True)
class _Pending:
    """A Send without an answer.

    `head` is its encoded LinkSend without the term, `room` the bytes that it takes of the room for all.
    `not_taken`: the shard that it was sent to isn't its owner. `behind` is the client_msg_id of an earlier one of its
    line that was refused for now: it mustn't be stored before that one comes again. `breaks` counts the links that
    broke while it was on them.
    """

    session: Session
    tenant: str
    conversation_id: str
    client_msg_id: str
    hash: int
    head: bytes
    room: int
    since: float
    not_taken: bool = False
    behind: str = ""
    breaks: int = 0

    def item(self, term: int) -> bytes:
        """Return the encoded item for an owner of this term."""
        # Fields items, send and term of LinkRequest, LinkUpItem and LinkSend.
        return nested(b"\x0a", nested(b"\x32", self.head + b"\x20" + varint(term)))


class Sends:
    """All Sends of this worker that have no answer yet."""

    def __init__(
        self,
        owners: OwnerMap,
        registry: Registry,
        syncs: Syncs,
        admission: Admission,
        numbers: Iterator[int],
    ) -> None:
        """`numbers` are those that name Sends and Syncs on the links."""
        self._owners = owners
        self._registry = registry
        self._syncs = syncs
        self._numbers = numbers
        self._room = admission.room
        self._least = admission.least_bytes
        self._pending: dict[int, _Pending] = {}
        self._lines: dict[str, list[int]] = {}

    def send(self, session: Session, tenant: str, send: frame_pb2.Send) -> None:
        """Pass a Send on, and keep it until its answer."""
        number = next(self._numbers)
        conversation_id = send.conversation_id
        # Fields 1 to 3 of LinkSend, by hand: this is the hot path.
        head = (
            b"\x08"
            + varint(session.number)
            + b"\x10"
            + varint(number)
            + nested(b"\x1a", send.SerializeToString())
        )
        pending = _Pending(
            session,
            tenant,
            conversation_id,
            send.client_msg_id,
            crc32(conversation_id.encode()),
            head,
            max(len(head), self._least),
            asyncio.get_running_loop().time(),
        )
        self._pending[number] = pending
        self._room.take(tenant, pending.room)
        line = self._lines.get(conversation_id)
        if line is None:
            self._lines[conversation_id] = [number]
        else:
            line.append(number)
        owner = self._owners.owner_of(pending.hash)
        if owner is not None:
            owner[0].put(pending.item(owner[1]), session)

    def answered(self, item: pb.LinkDownItem) -> None:
        """Take the answer to a Send, or to a Sync."""
        number = item.send_id
        if item.not_owner:
            if (pending := self._pending.get(number)) is not None:
                pending.not_taken = True
                if pending.behind:
                    self._give_back(number, line_held(pending.behind))
            return
        forgotten = self._forget(number)
        if forgotten is None:
            self._syncs.answered(number)
        elif item.held:
            self._hold(number, forgotten)

    def _forget(self, number: int) -> _Pending | None:
        pending = self._pending.pop(number, None)
        if pending is None:
            return None
        self._room.give_back(pending.tenant, pending.room)
        line = self._lines[pending.conversation_id]
        if len(line) == 1:
            del self._lines[pending.conversation_id]
        else:
            line.remove(number)
        # A resumed session counts from 0 again.
        pending.session.unacked = max(0, pending.session.unacked - 1)
        return pending

    # ---------------------------------------------------------------------------------- held lines

    def _hold(self, number: int, refused: _Pending) -> list[int]:
        """Hold the line of a Send that was refused for now; return the later ones of it, which mustn't be stored."""
        session, conversation_id = refused.session, refused.conversation_id
        session.hold(conversation_id, refused.client_msg_id)
        behind = [
            later
            for later in self._lines.get(conversation_id, ())
            if later > number and self._pending[later].session is session
        ]
        for later in behind:
            self._pending[later].behind = refused.client_msg_id
        return behind

    def _give_back(self, number: int, error: DeskwireError) -> None:
        pending = self._forget(number)
        if pending is None:
            return
        METRICS.gateway_refused.labels(error.reason_name).inc()
        if not pending.session.closed:
            batch = error_batch(
                error,
                client_msg_id=pending.client_msg_id,
                conversation_id=pending.conversation_id,
            )
            self._registry.push(pending.session, batch)

    def _give_back_line(self, number: int) -> None:
        """Give back a Send that can't be stored now, and the later ones of its line."""
        pending = self._pending.get(number)
        if pending is None:
            return
        if pending.behind:
            self._give_back(number, line_held(pending.behind))
            return
        self._give_back(
            number,
            Unavailable(
                "nobody can store the message now; send it again",
                reason=reasons.ERROR_REASON_NOT_OWNER,
                retry_after=1.0,
            ),
        )
        for later in self._hold(number, pending):
            self._give_back(later, line_held(pending.client_msg_id))

    def give_up_late(self) -> None:
        """Give back the Sends that have waited too long for an owner."""
        before = asyncio.get_running_loop().time() - _PATIENCE
        late: list[int] = []
        for number, pending in self._pending.items():
            if pending.since > before:
                break
            if pending.not_taken or self._owners.owner_of(pending.hash) is None:
                late.append(number)
        for number in late:
            self._give_back_line(number)

    # --------------------------------------------------------------------------------- sent again

    def of_shard(self, address: str) -> list[bytes]:
        """Return the un-answered items of a shard whose link is new, in their order."""
        again = self._again(
            (number, term, pending)
            for number, pending in list(self._pending.items())
            if (term := self._owners.term_at(pending.hash, address))
        )
        return [item for item, _ in again]

    def moved(self, partitions: set[int]) -> None:
        """Send the un-answered Sends of some partitions to the new owners, in their order."""
        per_link: dict[Link, list[tuple[int, int, _Pending]]] = {}
        for number, pending in self._pending.items():
            if self._owners.is_in(pending.hash, partitions):
                owner = self._owners.owner_of(pending.hash)
                if owner is not None:
                    per_link.setdefault(owner[0], []).append((number, owner[1], pending))
        for link, entries in per_link.items():
            for item, session in self._again(entries):
                link.put(item, session)

    def link_broke(self, address: str, *, on_item: bool) -> None:
        """Give up the Sends whose links broke too often: sent again, they might break the next link for everybody.

        `on_item`: gRPC blames an item. Otherwise the shard may just have been killed, which breaks a link as well; then
        a Send is given up only when its links go on breaking.
        """
        before = asyncio.get_running_loop().time() - _RESTARTS
        for number, pending in list(self._pending.items()):
            if pending.not_taken or not self._owners.term_at(pending.hash, address):
                continue
            pending.breaks += 1
            if pending.breaks > MAX_REPEATS and (on_item or pending.since < before):
                self._give_back_line(number)

    def _again(self, entries: Iterable[tuple[int, int, _Pending]]) -> list[tuple[bytes, Session]]:
        """Return the encoded items for the present owner of some Sends; an entry is a number, a term and the Send.

        A connection that is gone is attached once more, so that its un-answered Sends are stored.
        """
        items: list[tuple[bytes, Session]] = []
        gone: dict[int, Session] = {}
        for number, term, pending in entries:
            if pending.behind:
                self._give_back(number, line_held(pending.behind))
                continue
            session = pending.session
            if session.number not in self._registry.by_number and session.number not in gone:
                gone[session.number] = session
                items.append((attach(session), session))
            pending.not_taken = False
            items.append((pending.item(term), session))
        items += [(detach(number), session) for number, session in gone.items()]
        return items

    async def drain(self, seconds: float = 5.0) -> None:
        """Wait a while for the answers to the Sends."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._pending:
                    await asyncio.sleep(0.01)
