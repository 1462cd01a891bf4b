"""A record on its way: read once, decoded once, encoded once per view, and shared by all who get it."""

from __future__ import annotations

import json
from typing import Any, Final

from deskwire.events.v1.event_pb2 import Event
from deskwire_common import events as codec
from deskwire_common import topics
from deskwire_common.errors import InvalidArgument
from deskwire_common.kafka import Headers
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_wire.protobytes import nested, number

MAX_EVENT: Final = 3 << 20
"""Most bytes of one event as it is sent: below the 4 MiB that gRPC and its clients take."""
#: Bytes that a record costs beside its value.
_OVERHEAD: Final = 512
# Fields of DeliveredEvent, and `events` of SubscribeResponse.
_EVENT, _JSON, _TOPIC, _PARTITION, _OFFSET = b"\x0a", b"\x12", b"\x1a", b"\x20", b"\x28"
_EVENTS: Final = b"\x12"


class Carried:
    """One record with the attributes of its headers as bytes: `tenant`, `kind` (event type), `subject`, `source`.

    A record without them is decoded for them; one that is no event has the tenant b"", which nobody has.
    """

    __slots__ = (
        "_delivered", "_document", "_event", "_form", "_json", "_views", "event_id", "headers", "key", "kind",
        "offset", "partition", "size", "source", "subject", "tenant", "timestamp", "topic", "traceparent", "value",
    )  # fmt: skip

    def __init__(
        self,
        topic: str,
        partition: int,
        offset: int,
        key: bytes,
        value: bytes,
        headers: Headers,
        timestamp: int,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.key = key
        self.value = value
        self.headers = headers
        self.timestamp = timestamp
        self.size = len(value) + len(key) + _OVERHEAD
        self._event: Event | InvalidArgument | None = None
        self._json: bytes | None = None
        self._document: Any = None
        self._views: list[bytes | None] = [None, None]
        self._delivered: list[bytes | None] = [None, None]
        self.tenant = self.kind = self.subject = self.source = self.event_id = b""
        self.traceparent = self._form = b""
        for name, text in headers:
            if name == "ce_tenantid":
                self.tenant = text
            elif name == "ce_type":
                self.kind = text
            elif name == "ce_id":
                self.event_id = text
            elif name == "ce_source":
                self.source = text
            elif name == "ce_subject":
                self.subject = text
            elif name == "content-type":
                self._form = text
            elif name == "traceparent":
                self.traceparent = text
        if not (self.tenant and self.kind and self.event_id):
            self._ask_value()

    @property
    def place(self) -> tuple[str, int]:
        """Topic and partition."""
        return self.topic, self.partition

    def attribute(self, name: str) -> bytes | None:
        """A CloudEvents attribute; None when the record lacks it."""
        return codec.header(self.headers, f"ce_{name}")

    @property
    def event(self) -> Event:
        """The envelope. Raises InvalidArgument, again at each call, for a record that is none."""
        if self._event is None:
            try:
                found = codec.decode(self.topic, self.value, self.headers)
                if self.tenant and found.tenant_id.encode() != self.tenant:
                    raise InvalidArgument("its header names another tenant")
                self._event = found
            except InvalidArgument as error:
                self._event = error
                METRICS.hub_unreadable.inc()
                get_logger().warning(
                    "record_unreadable",
                    topic=self.topic,
                    partition=self.partition,
                    offset=self.offset,
                    error=error.message,
                )
        if isinstance(self._event, InvalidArgument):
            raise self._event
        return self._event

    @property
    def is_json(self) -> bool:
        """Whether the value is the JSON form already."""
        if not self._form:
            return topics.by_name(self.topic).value == "json"
        return b"protobuf" not in self._form

    @property
    def json(self) -> bytes:
        """The JSON form: what is on its topic, or made from it where that is protobuf. Raises InvalidArgument."""
        if self._json is None:
            if self.is_json:
                try:
                    self.value.decode()
                except UnicodeDecodeError as error:
                    raise InvalidArgument("the event is not JSON") from error
                self._json = self.value
            else:
                self._json = codec.encode_event(self.event, topics.EXTERNAL)
        return self._json

    @property
    def document(self) -> Any:
        """The JSON form as a dict. Raises InvalidArgument."""
        if self._document is None:
            try:
                self._document = json.loads(self.json)
            except ValueError as error:
                raise InvalidArgument("the event is not JSON") from error
        return self._document

    @property
    def proto(self) -> bytes:
        """The envelope's bytes. Raises InvalidArgument."""
        return self.event.SerializeToString() if self.is_json else self.value

    def view(self, *, json: bool) -> bytes:
        """A DeliveredEvent in one of its views, encoded; b"" for a record that is no event.

        An event of more than MAX_EVENT bytes is in it without its data.
        """
        found = self._views[json]
        if found is None:
            found = self._views[json] = self._encoded(json=json)
        return found

    def _encoded(self, *, json: bool) -> bytes:
        try:
            data = nested(_JSON, self.json) if json else nested(_EVENT, self.proto)
        except InvalidArgument:
            return b""
        if len(data) > MAX_EVENT:
            # Said, so that nobody takes it for delivered, and without its data, so that the stream goes on.
            get_logger().warning(
                "event_too_large",
                topic=self.topic,
                partition=self.partition,
                offset=self.offset,
                bytes=len(data),
            )
            data = b""
        return (
            data
            + nested(_TOPIC, self.topic.encode())
            + number(_PARTITION, self.partition)
            + number(_OFFSET, self.offset)
        )

    def delivered(self, *, json: bool) -> bytes:
        """The field `events` of a SubscribeResponse with its view: shared by all streams without names."""
        found = self._delivered[json]
        if found is None:
            view = self.view(json=json)
            found = self._delivered[json] = nested(_EVENTS, view) if view else b""
        return found

    def _ask_value(self) -> None:
        self.tenant = b""
        try:
            event = self.event
        except InvalidArgument:
            self.kind = b""
            return
        self.tenant = event.tenant_id.encode()
        self.kind = event.event_type.encode()
        self.subject = event.subject.encode()
        self.source = event.origin.encode()
        self.event_id = event.event_id.encode()
