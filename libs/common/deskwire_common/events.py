"""Events: from a domain change to the envelope, its bytes and its headers, and back.

The JSON form (docs/contract.md): the keys of the envelope in snake_case, always all of them, and `data` as
the protobuf JSON of the typed message (snake_case, fields at their default left out, no "@type", numbers as `exact`
has them). The type of `data` follows from the event type: `customer_updated` is
`deskwire.events.v1.CustomerUpdated`; on the topic of external events it is a `deskwire.common.v1.JsonObject`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor_pool import Default as DefaultPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from deskwire.common.v1.actor_pb2 import Actor
from deskwire.common.v1.actor_pb2 import Role as ProtoRole
from deskwire.common.v1.json_value_pb2 import JsonObject
from deskwire.events.v1.event_pb2 import Event
from deskwire_common import auth, exact, telemetry, topics
from deskwire_common.clock import Clock, to_micros, to_timestamp
from deskwire_common.errors import InvalidArgument
from deskwire_common.ids import Ids
from deskwire_common.topics import Topic

PACKAGE: Final = "deskwire.events.v1"
#: `origin` of changes that began in deskwire.
ORIGIN: Final = "deskwire"
Headers = list[tuple[str, bytes]]
_KEYS: Final = frozenset(
    {
        "event_type",
        "data",
        "trace_id",
        "event_id",
        "tenant_id",
        "subject",
        "sequence",
        "occurred_at",
        "actor",
        "origin",
        "correlation_id",
    }
)


@dataclass(frozen=True, slots=True)
class DomainEvent:
    """A change as a use case describes it.

    `subject` is the aggregate's id and the Kafka key, `sequence` the aggregate's version after the change,
    `occurred_at` microseconds since 1970 UTC. `topic` and `key` are only for events whose topic doesn't follow
    from their type (row changes, external events) or whose key isn't the subject.
    """

    event_id: str
    event_type: str
    tenant_id: str
    subject: str
    sequence: int
    occurred_at: int
    trace_id: str
    traceparent: str
    actor: Actor
    origin: str
    correlation_id: str
    data: Message
    topic: Topic | None = None
    key: str = ""

    @property
    def target(self) -> Topic:
        """The topic of the event."""
        return self.topic or topics.topic_for(self.event_type)

    @property
    def partition_key(self) -> str:
        """The Kafka key."""
        return self.key or self.subject


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


@functools.cache
def _load_types() -> None:
    """Register the messages of all event types; by name, as this library knows no business word."""
    package = importlib.import_module(PACKAGE)
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.endswith("_events_pb2"):
            importlib.import_module(f"{PACKAGE}.{module.name}")


@functools.cache
def _class_of(full_name: str) -> type[Message] | None:
    _load_types()
    try:
        return GetMessageClass(DefaultPool().FindMessageTypeByName(full_name))
    except KeyError:
        return None


def data_class(event_type: str) -> type[Message]:
    """The class of an event type's data; InvalidArgument when the contract has none."""
    found = _class_of(f"{PACKAGE}.{_camel(event_type)}")
    if found is None:
        raise InvalidArgument(f"no data type for the event type {event_type!r}", field="event_type")
    return found


def event_type_of(data: Message) -> str:
    """The event type of a data message: `CustomerUpdated` → `customer_updated`."""
    return _snake(data.DESCRIPTOR.name)


def actor_of(principal: auth.Principal) -> Actor:
    """The actor that a principal is."""
    return Actor(
        role=ProtoRole.Value(f"ROLE_{principal.role.name}"),
        subject=principal.subject,
        display_name=principal.name,
    )


def system_actor() -> Actor:
    """deskwire itself."""
    return Actor(role=ProtoRole.Value("ROLE_SYSTEM"), subject=ORIGIN, display_name=ORIGIN)


def new_event(
    data: Message,
    *,
    subject: str,
    sequence: int,
    ids: Ids,
    clock: Clock,
    event_type: str = "",
    event_id: str = "",
    tenant_id: str = "",
    actor: Actor | None = None,
    origin: str = "",
    correlation_id: str = "",
    occurred_at: int | None = None,
    trace_id: str = "",
    traceparent: str = "",
    topic: Topic | None = None,
    key: str = "",
) -> DomainEvent:
    """An event that happens now, by the current principal, in the current trace, unless a part is given.

    The origin is the system id of the token, never of the request; `deskwire` when the token has none.
    """
    if not tenant_id or actor is None:
        principal = auth.current_principal()
        tenant_id = tenant_id or principal.tenant
        origin = origin or principal.system
        actor = actor or actor_of(principal)
    traceparent = traceparent or telemetry.current_traceparent()
    if not trace_id:
        # The header and the envelope name the same trace.
        trace_id = traceparent.split("-")[1] if traceparent else telemetry.current_trace_id()
    return DomainEvent(
        event_id=event_id or ids.uuid7(),
        event_type=event_type or event_type_of(data),
        tenant_id=tenant_id,
        subject=subject,
        sequence=sequence,
        occurred_at=to_micros(clock.now()) if occurred_at is None else occurred_at,
        trace_id=trace_id,
        traceparent=traceparent,
        actor=actor,
        origin=origin or ORIGIN,
        correlation_id=correlation_id,
        data=data,
        topic=topic,
        key=key,
    )


def envelope(event: DomainEvent) -> Event:
    """The envelope of a domain event."""
    result = Event(
        event_id=event.event_id,
        event_type=event.event_type,
        tenant_id=event.tenant_id,
        subject=event.subject,
        sequence=event.sequence,
        occurred_at=to_timestamp(event.occurred_at),
        trace_id=event.trace_id,
        actor=event.actor,
        origin=event.origin or ORIGIN,
        correlation_id=event.correlation_id,
    )
    result.data.type_url = f"type.googleapis.com/{event.data.DESCRIPTOR.full_name}"
    result.data.value = event.data.SerializeToString()
    return result


def _topic(topic: Topic | str) -> Topic:
    return topics.by_name(topic) if isinstance(topic, str) else topic


def encode(event: DomainEvent, topic: Topic | str | None = None) -> bytes:
    """The value on Kafka, in the form of the topic (its own by default)."""
    target = event.target if topic is None else _topic(topic)
    if target.value == "protobuf":
        return envelope(event).SerializeToString()
    return _dumped(
        _json_form(
            event.event_type,
            event.data,
            event.trace_id,
            event.event_id,
            event.tenant_id,
            event.subject,
            event.sequence,
            to_timestamp(event.occurred_at).ToJsonString(),
            event.actor,
            event.origin or ORIGIN,
            event.correlation_id,
        )
    )


def encode_event(event: Event, topic: Topic | str) -> bytes:
    """The value on Kafka of a ready envelope."""
    return (
        event.SerializeToString() if _topic(topic).value == "protobuf" else _dumped(to_json(event))
    )


def _dumped(form: dict[str, Any]) -> bytes:
    return exact.dumps(form).encode()


def _json_form(
    event_type: str,
    data: Message | None,
    trace_id: str,
    event_id: str,
    tenant_id: str,
    subject: str,
    sequence: int,
    occurred_at: str,
    actor: Actor,
    origin: str,
    correlation_id: str,
) -> dict[str, Any]:
    return {
        "event_type": event_type,
        "data": {} if data is None else exact.to_plain(data),
        "trace_id": trace_id,
        "event_id": event_id,
        "tenant_id": tenant_id,
        "subject": subject,
        "sequence": sequence,
        "occurred_at": occurred_at,
        "actor": exact.to_plain(actor),
        "origin": origin,
        "correlation_id": correlation_id,
    }


def unpack(event: Event) -> Message | None:
    """The typed data of an envelope; None when it has none. InvalidArgument for a type that isn't known here."""
    if not event.data.type_url:
        return None
    name = event.data.type_url.rpartition("/")[2]
    found = _class_of(name)
    if found is None:
        raise InvalidArgument(f"unknown type of event data: {name}", field="data")
    data = found()
    try:
        data.ParseFromString(event.data.value)
    except DecodeError as error:
        raise InvalidArgument("the event's data can't be decoded", field="data") from error
    return data


def to_json(event: Event) -> dict[str, Any]:
    """The JSON form of an envelope, as a dict for `exact.dumps`."""
    return _json_form(
        event.event_type,
        unpack(event),
        event.trace_id,
        event.event_id,
        event.tenant_id,
        event.subject,
        event.sequence,
        event.occurred_at.ToJsonString(),
        event.actor,
        event.origin,
        event.correlation_id,
    )


def from_json(value: bytes | str, *, external: bool | None = None) -> Event:
    """The envelope of a JSON form. Raises InvalidArgument for anything else.

    `external`: `data` is a free JsonObject; by default this holds for event types that the contract lacks.
    Unknown keys of the envelope and unknown fields of `data` are ignored: a newer writer may have more of them.
    """
    try:
        document = exact.loads(value)
    except InvalidArgument as error:
        raise InvalidArgument("the event is not JSON") from error
    if not isinstance(document, dict):
        raise InvalidArgument("the event is not a JSON object")
    event_type = document.get("event_type")
    if not isinstance(event_type, str) or not event_type:
        raise InvalidArgument("the event has no event_type", field="event_type")
    known = None if external else _class_of(f"{PACKAGE}.{_camel(event_type)}")
    if known is None and external is False:
        raise InvalidArgument(f"unknown event type {event_type!r}", field="event_type")
    data = JsonObject() if known is None else known()
    rest = {key: item for key, item in document.items() if key in _KEYS and key != "data"}
    event = Event()
    try:
        found = document.get("data")
        exact.fill(data, {} if found is None else found)
        exact.fill(event, rest)
    except (
        InvalidArgument,
        json_format.ParseError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        raise InvalidArgument(
            f"the event {event_type!r} doesn't have the form of the contract"
        ) from error
    event.data.Pack(data)
    return event


def decode(
    topic: Topic | str, value: bytes | None, headers: Sequence[tuple[str, bytes]] | None = None
) -> Event:
    """The envelope of a Kafka value. Raises InvalidArgument for any other bytes.

    The topic decides the form, unless a `content-type` header names another.
    """
    if not value:
        raise InvalidArgument("the record has no value")
    target = _topic(topic)
    form = target.value
    content_type = header(headers or (), "content-type")
    if content_type is not None:
        form = "protobuf" if b"protobuf" in content_type else "json"
    if form == "json":
        return from_json(value, external=True if target.external else None)
    try:
        return Event.FromString(value)
    except DecodeError as error:
        raise InvalidArgument("the record is not an encoded event") from error


def header(headers: Iterable[tuple[str, bytes]], name: str) -> bytes | None:
    """The first header of that name."""
    return next((value for key, value in headers if key == name), None)


def traceparent_of(headers: Iterable[tuple[str, bytes]]) -> str:
    """The W3C traceparent of a record, "" when there is none."""
    return (header(headers, "traceparent") or b"").decode("ascii", "replace")


def headers(event: DomainEvent) -> Headers:
    """CloudEvents attributes (Kafka binding, binary mode) and `traceparent`."""
    form = b"application/json" if event.target.value == "json" else b"application/protobuf"
    result = [
        ("ce_specversion", b"1.0"),
        ("ce_id", event.event_id.encode()),
        ("ce_type", event.event_type.encode()),
        ("ce_source", (event.origin or ORIGIN).encode()),
        ("ce_subject", event.subject.encode()),
        ("ce_time", to_timestamp(event.occurred_at).ToJsonString().encode()),
        ("ce_tenantid", event.tenant_id.encode()),
        ("content-type", form),
    ]
    if event.traceparent:
        result.append(("traceparent", event.traceparent.encode()))
    return result
