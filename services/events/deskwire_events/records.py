"""Records of Kafka as events that the hub can carry."""

from __future__ import annotations

from typing import Final

from deskwire.events.v1.event_pb2 import Event
from deskwire_common import events as codec
from deskwire_common import ids as id_forms
from deskwire_common import topics
from deskwire_common.errors import InvalidArgument
from deskwire_common.kafka import Record
from deskwire_common.logging import get_logger

MAX_EVENT: Final = 3 << 20
"""Most bytes of one event as it is sent: below the 4 MiB that gRPC and its clients take."""
_MAX_NAME: Final = 64


def json_of(record: Record, event: Event) -> str:
    """The JSON form of an event: what is on its topic, or made from it where that is protobuf."""
    if topics.by_name(record.topic).value == "json" and record.value is not None:
        return record.value.decode()
    return codec.encode_event(event, topics.EXTERNAL).decode()


def check(event: Event) -> None:
    """Raises InvalidArgument unless ids and names have the contract's own form: then they can be stored."""
    if not id_forms.is_uuid(event.event_id):
        raise InvalidArgument("the event_id is no UUID", field="event_id")
    for name in ("event_type", "trace_id"):
        text = getattr(event, name)
        if len(text) > _MAX_NAME or not text.isascii():
            raise InvalidArgument(f"{name} has a wrong form", field=name)


def log_too_large(record: Record, size: int) -> None:
    """Say that an event is larger than a message may be."""
    get_logger().warning(
        "event_too_large",
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        bytes=size,
    )


def log_unreadable(record: Record, error: InvalidArgument) -> None:
    """Say that a record is no event: nobody can get it."""
    get_logger().warning(
        "record_unreadable",
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        error=error.message,
    )
