"""Sources and row changes as messages: the source itself, and the events that say what happened."""

from __future__ import annotations

from typing import Final

from deskwire.cdc.v1 import source_pb2
from deskwire.common.v1 import actor_pb2
from deskwire.events.v1 import hub_events_pb2
from deskwire_cdc.domain.changes import NumberedChange
from deskwire_cdc.domain.sources import SUBJECT, CustomerRule, Source, State
from deskwire_common import topics
from deskwire_common.clock import Clock, to_timestamp
from deskwire_common.events import DomainEvent, new_event
from deskwire_common.exact import json_object
from deskwire_common.ids import Ids

_KIND: Final = "SOURCE_KIND_"
_STATES: Final = {
    State.SNAPSHOT: source_pb2.SOURCE_STATE_SNAPSHOT,
    State.STREAMING: source_pb2.SOURCE_STATE_STREAMING,
    State.RETRYING: source_pb2.SOURCE_STATE_RETRYING,
    State.REFUSED: source_pb2.SOURCE_STATE_REFUSED,
}
_ACTOR: Final = actor_pb2.Actor(role=actor_pb2.ROLE_INTEGRATION, subject=SUBJECT)


def kind_name(number: source_pb2.SourceKind.ValueType) -> str:
    """Return the name of a kind of the contract: SOURCE_KIND_MARIADB is `mariadb`."""
    return source_pb2.SourceKind.Name(number).removeprefix(_KIND).lower()


def source_message(source: Source) -> source_pb2.Source:
    """Return a source as a message of the contract, without the password."""
    shown = source.masked()
    message = source_pb2.Source(
        source_id=shown.source_id,
        kind=source_pb2.SourceKind.Value(f"{_KIND}{shown.kind.upper()}"),
        url=shown.url,
        system_id=shown.system_id,
        tables=shown.tables,
        customer_rule=_rule_message(shown.customer_rule),
        snapshot=shown.snapshot,
        state=_STATES[shown.state],
        position=shown.position,
        last_error=shown.last_error,
        change_count=shown.change_count,
        refused_count=shown.refused_count,
        create_time=to_timestamp(shown.created_at),
        version=shown.version,
    )
    if shown.last_change_at:
        message.last_change_time.CopyFrom(to_timestamp(shown.last_change_at))
    return message


def source_created(source: Source, *, ids: Ids, clock: Clock) -> DomainEvent:
    """Return the event of a source that was created now, by the current principal."""
    data = hub_events_pb2.SourceCreated(source=source_message(source))
    return new_event(
        data, subject=source.aggregate_id, sequence=source.version, ids=ids, clock=clock
    )


def source_deleted(source: Source, *, ids: Ids, clock: Clock) -> DomainEvent:
    """Return the event of a source that was deleted now, by the current principal."""
    data = hub_events_pb2.SourceDeleted(source=source_message(source))
    return new_event(
        data, subject=source.aggregate_id, sequence=source.version, ids=ids, clock=clock
    )


def row_changed(source: Source, numbered: NumberedChange, *, ids: Ids, clock: Clock) -> DomainEvent:
    """Return the event of a row's change, in the current trace; its origin is the source's system."""
    change = numbered.change
    data: hub_events_pb2.RowChanged | hub_events_pb2.RowUnreadable
    if change.unreadable:
        data = hub_events_pb2.RowUnreadable(
            source_id=source.source_id,
            table=change.table,
            operation=change.operation.value,
            key=json_object(change.key),
            position=change.position,
            reason=change.unreadable,
        )
    else:
        data = hub_events_pb2.RowChanged(
            source_id=source.source_id,
            table=change.table,
            operation=change.operation.value,
            key=json_object(change.key),
            before=None if change.before is None else json_object(change.before),
            after=None if change.after is None else json_object(change.after),
            position=change.position,
        )
    return new_event(
        data,
        subject=numbered.subject,
        sequence=numbered.sequence,
        ids=ids,
        clock=clock,
        event_id=numbered.event_id,
        tenant_id=source.tenant_id,
        actor=_ACTOR,
        origin=source.system_id,
        occurred_at=change.committed_at,
        topic=topics.changes_topic(source.source_id, change.table),
    )


def _rule_message(rule: CustomerRule | None) -> source_pb2.CustomerRule | None:
    if rule is None:
        return None
    return source_pb2.CustomerRule(
        table=rule.table,
        id_column=rule.id_column,
        visitor_column=rule.visitor_column,
        columns=rule.columns,
        version_column=rule.version_column,
    )
