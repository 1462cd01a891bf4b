"""Syncs on their way to chat: each is kept until its answer, and asked again after a break, but not for ever."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire.gateway.v1 import frame_pb2
from deskwire.shard.v1 import shard_service_pb2 as pb
from deskwire_common.errors import DeskwireError, InvalidArgument, Unavailable
from deskwire_common.metrics import METRICS
from deskwire_gateway.items import up_item
from deskwire_gateway.link import Link
from deskwire_gateway.owner_map import OwnerMap
from deskwire_gateway.registry import Registry
from deskwire_gateway.session import Session
from deskwire_wire.errors import error_batch

MAX_REPEATS: Final = 2
"""How often a Sync is asked again after its link broke. Few: its client asks again, and its answer may break links."""
_RETRY_AFTER: Final = 5.0
"""Seconds after which a client may ask again for a Sync that was given up."""


@dataclass(slots=True)
class _Pending:
    """A Sync without an answer, and the link that it was put on; `breaks` counts the links that broke with it."""

    session: Session
    conversation_id: str
    item: bytes
    link: Link | None
    breaks: int = 0


class Syncs:
    """All Syncs of this worker that have no answer yet. Any shard can answer one; the owner knows best."""

    def __init__(self, owners: OwnerMap, registry: Registry, numbers: Iterator[int]) -> None:
        """`numbers` are those that name Sends and Syncs on the links."""
        self._owners = owners
        self._registry = registry
        self._numbers = numbers
        self._pending: dict[int, _Pending] = {}

    def sync(self, session: Session, sync: frame_pb2.Sync) -> None:
        """Pass a Sync on."""
        number = next(self._numbers)
        item = up_item(sync=pb.LinkSync(connection_id=session.number, sync=sync, send_id=number))
        owner = self._owners.owner_of(crc32(sync.conversation_id.encode()))
        link = owner[0] if owner is not None else self._owners.any_link()
        self._pending[number] = _Pending(session, sync.conversation_id, item, link)
        if link is not None:
            link.put(item, session)

    def answered(self, number: int) -> None:
        """Take the answer to a Sync, if it is one."""
        self._pending.pop(number, None)

    def waiting_for(self, link: Link) -> list[bytes]:
        """Return the items that no shard could be asked until now, for a new link."""
        items = []
        for number, pending in list(self._pending.items()):
            if pending.session.closed:
                del self._pending[number]
            elif pending.link is None:
                pending.link = link
                items.append(pending.item)
        return items

    def link_lost(self, link: Link, *, on_item: bool) -> None:
        """Ask another shard for the Syncs of a lost link; `on_item`: gRPC blames an item."""
        other = self._owners.any_link()
        for number, pending in list(self._pending.items()):
            if pending.link is not link:
                continue
            pending.breaks += 1
            if pending.session.closed:
                del self._pending[number]
            elif pending.breaks > MAX_REPEATS:
                del self._pending[number]
                self._give_up(pending, _too_large() if on_item else _not_answered())
            else:
                pending.link = other
                if other is not None:
                    other.put(pending.item, pending.session)

    def _give_up(self, pending: _Pending, error: DeskwireError) -> None:
        METRICS.gateway_refused.labels(error.reason_name).inc()
        batch = error_batch(error, conversation_id=pending.conversation_id)
        self._registry.push(pending.session, batch)


def _too_large() -> InvalidArgument:
    return InvalidArgument(
        "the answer is larger than can be sent; Sync with a smaller limit",
        reason=reasons.ERROR_REASON_TOO_LARGE,
    )


def _not_answered() -> Unavailable:
    return Unavailable("history can't be read now; Sync again", retry_after=_RETRY_AFTER)
