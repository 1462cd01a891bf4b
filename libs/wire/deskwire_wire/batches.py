"""Encoded batches: each is one WebSocket message, or part of a Down of the link."""

from __future__ import annotations

from deskwire.gateway.v1 import frame_pb2
from deskwire_wire.protobytes import nested, number


def encoded(**kind: object) -> bytes:
    """Return an encoded Batch of one frame."""
    frame = frame_pb2.Frame(**kind)  # type: ignore[arg-type] # one member of the oneof
    return frame_pb2.Batch(frames=[frame]).SerializeToString()


def pong(ping_id: int) -> bytes:
    """Return an encoded Batch that answers a Ping; made by hand, as most frames of many connections are heartbeats."""
    return nested(b"\x0a", nested(b"\x22", number(b"\x08", ping_id)))
