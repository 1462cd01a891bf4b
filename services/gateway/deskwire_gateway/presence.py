"""Presence: chat's shards hear of every session of this worker."""

from __future__ import annotations

from deskwire.shard.v1 import shard_service_pb2 as pb
from deskwire_gateway.items import attach, detach, up_item
from deskwire_gateway.owner_map import OwnerMap
from deskwire_gateway.session import Session


class Presence:
    """Tells all shards that have a link who is connected; a link that opens begins with all of them."""

    def __init__(self, owners: OwnerMap) -> None:
        self._owners = owners

    def attach(self, session: Session) -> None:
        """Tell chat about a connection after its Hello."""
        self._to_all(attach(session), session)

    def detach(self, session: Session) -> None:
        """Tell chat that a connection is gone. Its Sends stay: they may have been stored."""
        self._to_all(detach(session.number), session)

    def park(self, session: Session) -> None:
        """Tell chat that a connection broke and may come back."""
        self._to_all(up_item(park=pb.Park(connection_id=session.number)), session)

    def unpark(self, session: Session) -> None:
        """Tell chat that a connection is there again."""
        self._to_all(up_item(unpark=pb.Unpark(connection_id=session.number)), session)

    def _to_all(self, item: bytes, session: Session) -> None:
        for link in self._owners.links.values():
            link.put(item, session)
