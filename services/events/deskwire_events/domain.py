"""The rules of the hub: cursors, which topics carry what, adapters and how deliveries end. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final, TypeAlias

from deskwire.common.v1 import error_reason_pb2
from deskwire_common import topics
from deskwire_common.auth import Role
from deskwire_common.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied

Place: TypeAlias = tuple[str, int]
"""Topic and partition."""

_VERSION: Final = "1"
_MAX_CURSOR_BYTES: Final = 1 << 18


# -- cursors -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cursor:
    """The next offset of every partition that a subscription reads, on one Kafka cluster."""

    cluster: str
    places: Mapping[Place, int]


def encode_cursor(cursor: Cursor) -> str:
    """The cursor as text: a few hundred characters, and some twenty more for each captured table."""
    by_topic: dict[str, dict[str, int]] = {}
    for (topic, partition), offset in sorted(cursor.places.items()):
        by_topic.setdefault(topic, {})[str(partition)] = offset
    body = json.dumps([cursor.cluster, by_topic], separators=(",", ":")).encode()
    packed = base64.urlsafe_b64encode(zlib.compress(body, 6)).rstrip(b"=").decode()
    return _VERSION + packed


def decode_cursor(text: str) -> Cursor:
    """The cursor that a text says. Raises InvalidArgument (INVALID_CURSOR) for any other text."""
    try:
        raw = text.removeprefix(_VERSION).encode("ascii")
        packed = base64.b64decode(raw + b"=" * (-len(raw) % 4), altchars=b"-_", validate=True)
        body = zlib.decompressobj().decompress(packed, _MAX_CURSOR_BYTES)
        cluster, by_topic = json.loads(body)
        places = {
            (topic, int(partition)): offset
            for topic, partitions in by_topic.items()
            for partition, offset in partitions.items()
        }
    except (ValueError, TypeError, AttributeError, zlib.error, RecursionError) as error:
        raise _no_cursor() from error
    good = isinstance(cluster, str) and all(
        # Kafka's own: partitions of 32 bits, offsets of 64.
        0 <= partition < 1 << 31 and type(offset) is int and 0 <= offset < 1 << 63
        for (_, partition), offset in places.items()
    )
    if not good or not text.startswith(_VERSION):
        raise _no_cursor()
    return Cursor(cluster, places)


def concealed(cursor: Cursor, tenant: str) -> Cursor:
    """The cursor as a tenant gets it: the topics of captured tables, which are other tenants' too, without names."""
    return Cursor(
        cursor.cluster,
        {
            (_alias(cursor.cluster, tenant, topic), partition): offset
            for (topic, partition), offset in cursor.places.items()
        },
    )


def revealed(cursor: Cursor, tenant: str, names: Collection[str]) -> Cursor:
    """The cursor that was concealed; places in none of these topics are left out."""
    known = {_alias(cursor.cluster, tenant, topic): topic for topic in names}
    return Cursor(
        cursor.cluster,
        {
            (known[alias], partition): offset
            for (alias, partition), offset in cursor.places.items()
            if alias in known
        },
    )


def _alias(cluster: str, tenant: str, topic: str) -> str:
    if topic in topics.TOPICS:
        return topic
    digest = hashlib.sha256(f"{cluster}/{tenant}/{topic}".encode()).digest()
    return "#" + base64.urlsafe_b64encode(digest[:9]).decode()


def _no_cursor() -> InvalidArgument:
    return InvalidArgument(
        "the cursor was not made by Subscribe",
        reason=error_reason_pb2.ERROR_REASON_INVALID_CURSOR,
        field="start.cursor",
    )


def is_kept(
    cursor: Cursor, cluster: str, oldest: Mapping[Place, int], ends: Mapping[Place, int]
) -> bool:
    """Whether reading can go on at the cursor without a loss.

    An offset beyond the end is of another history: the topic was made anew.
    """
    return cursor.cluster == cluster and all(
        oldest[place] <= offset <= ends[place]
        for place, offset in cursor.places.items()
        if place in oldest
    )


# -- what is carried where ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Selection:
    """Topics by name, and whether the topics of captured tables belong to them."""

    names: tuple[str, ...]
    changes: bool


def topics_of(event_types: Collection[str]) -> Selection:
    """Where events of these types are; none: all. Types that aren't deskwire's are external."""
    names = {_topic_name(event_type) for event_type in event_types} or set(topics.TOPICS)
    return Selection(tuple(sorted(names - {topics.CHANGES.name})), topics.CHANGES.name in names)


_DESK: Final = frozenset({Role.OPERATOR, Role.INTEGRATION, Role.SERVICE, Role.AGENT, Role.BOT})
_LISTERS: Final = _DESK - {Role.BOT}
_OWNERS: Final = _LISTERS - {Role.AGENT}

#: Who may see what by Subscribe: the same roles that may list it by an RPC.
READERS: Final[Mapping[str, frozenset[Role]]] = {
    topics.ACCESS.name: frozenset({Role.OPERATOR}),
    topics.AGENTS.name: _LISTERS,
    topics.CHANGES.name: _OWNERS,
    topics.CONVERSATIONS.name: _DESK,
    topics.CUSTOMERS.name: _LISTERS,
    topics.DELIVERIES.name: _OWNERS,
    topics.EXTERNAL.name: _DESK,
    topics.MESSAGES.name: _DESK,
    topics.SOURCES.name: _OWNERS,
    topics.TICKETS.name: _DESK,
}


def readable(role: Role, event_type: str) -> bool:
    """Whether a role may see events of a type. Types that aren't deskwire's are external."""
    return role in READERS[_topic_name(event_type)]


def readable_topics(role: Role, event_types: Collection[str]) -> Selection:
    """Where the events of these types are that a role may see; no types: all that it may see.

    Raises PermissionDenied for a type by name that it may not.
    """
    for event_type in event_types:
        if not readable(role, event_type):
            raise PermissionDenied(f"{role.value}s don't get events of type {event_type}")
    asked = topics_of(event_types)
    names = tuple(name for name in asked.names if role in READERS[name])
    return Selection(names, asked.changes and role in READERS[topics.CHANGES.name])


def _topic_name(event_type: str) -> str:
    try:
        return topics.topic_for(event_type).name
    except InvalidArgument:
        return topics.EXTERNAL.name


def is_own_type(event_type: str) -> bool:
    """Whether deskwire itself publishes this type, so that nobody else may."""
    return any(event_type in topic.event_types for topic in topics.TOPICS.values())


# -- adapters ----------------------------------------------------------------------------------


class AdapterState(IntEnum):
    """How an adapter is doing; the numbers are the contract's."""

    ACTIVE = 1
    RETRYING = 2
    STOPPED = 3


class Outcome(IntEnum):
    """What became of one event at an adapter; the numbers are the contract's."""

    DELIVERED = 1
    DUPLICATE = 2
    SKIPPED = 3
    RETRY = 4
    AUTH_EXPIRED = 5
    REJECTED = 6

    @property
    def final(self) -> bool:
        """Whether the event's way ends with it."""
        return self not in {Outcome.RETRY, Outcome.AUTH_EXPIRED}


def outcome_of(number: int) -> Outcome:
    """The outcome of a number of the contract; unset and unknown ones mean: try again."""
    try:
        return Outcome(number)
    except ValueError:
        return Outcome.RETRY


@dataclass(frozen=True, slots=True)
class Adapter:
    """A system that events are pushed to.

    `accepts` is what its Schema said; `registration` counts registrations and removals, `version`
    the events about it, `rejected_in_row` the dead letters since the last success.
    """

    tenant: str
    adapter_id: str
    system_id: str
    target: str
    event_types: tuple[str, ...]
    accepts: tuple[str, ...]
    credentials: Mapping[str, str]
    state: AdapterState
    last_error: str
    delivered_count: int
    dead_letter_count: int
    rejected_in_row: int
    created_at: int
    """Microseconds."""
    version: int
    registration: int
    removed: bool

    @property
    def subject(self) -> str:
        """Subject and key of its events."""
        return f"{self.tenant}/{self.adapter_id}"

    @property
    def group(self) -> str:
        """Its consumer group; a new registration has the same and goes on where it stopped."""
        return f"deskwire-hub/{self.tenant}/{self.adapter_id}"

    @property
    def wanted(self) -> frozenset[str]:
        """Event types that are pushed; empty: all."""
        if self.event_types and self.accepts:
            return frozenset(self.event_types) & frozenset(self.accepts)
        return frozenset(self.event_types or self.accepts)


@dataclass(frozen=True, slots=True)
class Delivery:
    """The end of one event's way to one adapter. `number` orders them, 0 before it is stored."""

    event_id: str
    event_type: str
    outcome: Outcome
    detail: str
    attempts: int
    time: int
    """Microseconds."""
    trace_id: str
    traceparent: str = ""
    number: int = 0


def register(
    before: Adapter | None,
    *,
    tenant: str,
    adapter_id: str,
    system_id: str,
    target: str,
    event_types: Sequence[str],
    accepts: Sequence[str],
    credentials: Mapping[str, str],
    now: int,
) -> Adapter:
    """A registered adapter; `before` is the one of this id, if there was one.

    Raises AlreadyExists when that one was not removed.
    """
    if before is not None and not before.removed:
        raise registered_already(adapter_id)
    return Adapter(
        tenant=tenant,
        adapter_id=adapter_id,
        system_id=system_id,
        target=target,
        event_types=tuple(event_types),
        accepts=tuple(accepts),
        credentials=dict(credentials),
        state=AdapterState.ACTIVE,
        last_error="",
        delivered_count=0 if before is None else before.delivered_count,
        dead_letter_count=0 if before is None else before.dead_letter_count,
        rejected_in_row=0,
        created_at=now,
        version=1 if before is None else before.version + 1,
        registration=1 if before is None else before.registration + 1,
        removed=False,
    )


def remove(adapter: Adapter | None, adapter_id: str, system: str) -> Adapter:
    """A removed adapter; `system` is the caller's when it may only remove its own.

    Raises NotFound (ADAPTER_NOT_FOUND), PermissionDenied.
    """
    if adapter is None or adapter.removed:
        raise not_found(adapter_id)
    check_system(adapter.system_id, system)
    return replace(
        adapter,
        version=adapter.version + 1,
        registration=adapter.registration + 1,
        removed=True,
        credentials={},
    )


def check_system(system_id: str, caller: str) -> None:
    """An integration acts for its own system only. `caller`: its system id, "" for others."""
    if caller and caller != system_id:
        raise PermissionDenied(f"a token of system {caller} can't act for {system_id}")


def delivered(adapter: Adapter, deliveries: Iterable[Delivery], *, limit: int) -> Adapter:
    """The adapter after these ends, in their order; `limit` dead letters in a row stop it."""
    good = adapter.delivered_count
    dead = adapter.dead_letter_count
    row = adapter.rejected_in_row
    error = adapter.last_error
    for delivery in deliveries:
        if delivery.outcome is Outcome.REJECTED:
            dead, row, error = dead + 1, row + 1, f"rejected: {delivery.detail}"
        else:
            good, row = good + 1, 0
    stopped = row >= limit or adapter.state is AdapterState.STOPPED
    return replace(
        adapter,
        delivered_count=good,
        dead_letter_count=dead,
        rejected_in_row=row,
        last_error=error,
        state=AdapterState.STOPPED if stopped else AdapterState.ACTIVE,
    )


def registered_already(adapter_id: str) -> AlreadyExists:
    """The error for an adapter_id that is taken."""
    return AlreadyExists(f"adapter {adapter_id} is registered; remove it first")


def not_found(adapter_id: str) -> NotFound:
    """The error for an adapter that isn't there, or is another tenant's."""
    return NotFound(
        f"no adapter {adapter_id}", reason=error_reason_pb2.ERROR_REASON_ADAPTER_NOT_FOUND
    )
