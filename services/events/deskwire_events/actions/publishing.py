"""Publishing events of outside systems, and the catalogue."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from deskwire.common.v1.json_value_pb2 import JsonObject
from deskwire.events.v1 import event_hub_service_pb2 as hub_pb
from deskwire_common import events as codec
from deskwire_common import exact, texts, topics
from deskwire_common import ids as id_forms
from deskwire_common.auth import Principal
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import InvalidArgument
from deskwire_common.events import DomainEvent
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.ids import Ids
from deskwire_common.outbox import Outbox
from deskwire_events import domain, store
from deskwire_events.actions.checks import check_text
from deskwire_events.callers import tenant_caller

HUB: Final = "deskwire.events.v1.EventHubService"
PUBLISH: Final = f"{HUB}/Publish"
#: Bytes of one PublishRequest.
MAX_PUBLISH: Final = 1 << 20
# 9999-12-31T23:59:59Z, the last second of a protobuf Timestamp.
_LAST_SECOND: Final = 253_402_300_799


@dataclass(frozen=True, slots=True)
class EventActions:
    """Events of outside systems, for the current principal and in its tenant."""

    db: Database
    outbox: Outbox
    idempotency: IdempotencyStore
    clock: Clock
    ids: Ids

    async def publish(self, request: hub_pb.PublishRequest) -> hub_pb.PublishResponse:
        """Store events; the relay brings them to Kafka. Raises InvalidArgument, RequestIdReused."""
        principal = tenant_caller()
        check_text("request_id", request.request_id)
        for index, event in enumerate(request.events):
            _check_event(f"events[{index}]", event)
        data = [_data_of(f"events[{index}]", event) for index, event in enumerate(request.events)]

        given = [event.event_id for event in request.events if event.HasField("event_id")]
        if len(set(given)) < len(given):
            raise InvalidArgument("an event_id stands twice in the request", field="events")
        source = principal.system or codec.ORIGIN

        async def work(uow: UnitOfWork) -> hub_pb.PublishResponse:
            now = to_micros(self.clock.now())
            new = await store.external_ids.add(uow, principal.tenant, source, given, now)
            duplicates = [event_id for event_id in given if event_id not in new]
            fresh = [
                (event, each)
                for event, each in zip(request.events, data, strict=True)
                if not event.HasField("event_id") or event.event_id in new
            ]
            counts = Counter(event.subject for event, _ in fresh)
            # Locks the subjects before their events get their places in the outbox.
            last = await store.subjects.draw_sequences(uow, principal.tenant, counts)
            made: list[DomainEvent] = []
            for event, each in fresh:
                last[event.subject] += 1
                made.append(self._event(principal, event, each, last[event.subject]))
            await self.outbox.add(uow, made)
            published = iter(made)
            return hub_pb.PublishResponse(
                event_ids=[
                    event.event_id
                    if event.HasField("event_id") and event.event_id not in new
                    else next(published).event_id
                    for event in request.events
                ],
                duplicates=duplicates,
            )

        return await self.idempotency.once(self.db, method=PUBLISH, request=request, work=work)

    async def list_event_types(
        self, _request: hub_pb.ListEventTypesRequest
    ) -> hub_pb.ListEventTypesResponse:
        """Every event type of deskwire's, by topic and type."""
        return hub_pb.ListEventTypesResponse(
            event_types=[
                hub_pb.EventType(
                    event_type=event_type,
                    topic=topic.name,
                    data_type=codec.data_class(event_type).DESCRIPTOR.full_name,
                    key=topic.key,
                    description=topic.event_types[event_type],
                )
                for topic in sorted(topics.TOPICS.values(), key=lambda topic: topic.name)
                for event_type in sorted(topic.event_types)
            ]
        )

    def _event(
        self, principal: Principal, event: hub_pb.ExternalEvent, data: JsonObject, sequence: int
    ) -> DomainEvent:
        occurred_at = event.occurred_at.ToMicroseconds() if event.HasField("occurred_at") else None
        return codec.new_event(
            data,
            event_type=event.event_type,
            event_id=event.event_id,
            subject=event.subject,
            sequence=sequence,
            ids=self.ids,
            clock=self.clock,
            occurred_at=occurred_at,
            topic=topics.EXTERNAL,
            key=f"{principal.tenant}/{event.subject}",
        )


def _check_event(path: str, event: hub_pb.ExternalEvent) -> None:
    if domain.is_own_type(event.event_type):
        raise InvalidArgument(
            f"{event.event_type} is deskwire's own event type", field=f"{path}.event_type"
        )
    if event.HasField("event_id") and not id_forms.is_uuid(event.event_id):
        raise InvalidArgument(
            "write the UUID in lower case, with hyphens", field=f"{path}.event_id"
        )
    # Databases disagree about spaces at the end, and PostgreSQL stores no NUL.
    # A subject is a key: it isn't trimmed, but refused.
    if event.subject != texts.line(event.subject, f"{path}.subject"):
        raise InvalidArgument(
            "a subject has no blanks and no direction marks at its ends", field=f"{path}.subject"
        )
    if event.HasField("occurred_at") and not _is_time(event.occurred_at):
        raise InvalidArgument("not a time", field=f"{path}.occurred_at")


def _data_of(path: str, event: hub_pb.ExternalEvent) -> JsonObject:
    """What happened, whichever way it was said."""
    body = event.WhichOneof("body") or "data"
    try:
        if body == "data":
            return exact.json_object(event.data)
        plain = exact.loads(event.data_json)
        if not isinstance(plain, dict):
            raise InvalidArgument("not a JSON object")
        return exact.json_object(plain)
    except InvalidArgument as error:
        raise InvalidArgument(
            f"the data has no JSON form: {error.message}", field=f"{path}.{body}"
        ) from error


def _is_time(time: Timestamp) -> bool:
    return 0 <= time.seconds <= _LAST_SECOND and 0 <= time.nanos < 1_000_000_000
