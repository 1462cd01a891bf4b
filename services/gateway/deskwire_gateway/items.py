"""Encoded items of the stream to a shard. An item is a LinkRequest of its own; such bytes concatenate."""

from __future__ import annotations

from typing import Any

from deskwire.shard.v1 import shard_service_pb2 as pb
from deskwire_gateway.session import Session


def up_item(**kind: Any) -> bytes:
    """Return an encoded item: `up_item(detach=…)`."""
    return pb.LinkRequest(items=[pb.LinkUpItem(**kind)]).SerializeToString()


def attach(session: Session) -> bytes:
    """Return the item that reports who is connected. Only for sessions after their Hello."""
    who = session.principal
    assert who is not None  # noqa: S101 - callers have said Hello
    item = pb.Attach(
        connection_id=session.number,
        tenant_id=who.tenant,
        user=session.actor(),
        device_id=session.device_id,
        connect_micros=int(session.connected_at * 1_000_000),
        parked=session.parked > 0,
    )
    if who.profile is not None:
        item.profile.email = who.profile.email
        item.profile.mobile = who.profile.mobile
        for system, value in who.profile.ids:
            item.profile.ids.add(namespace=system, value=value)
    return up_item(attach=item)


def detach(connection: int) -> bytes:
    """Return the item that reports that a connection is gone."""
    return up_item(detach=pb.Detach(connection_id=connection))
