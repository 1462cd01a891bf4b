"""Subscriptions: named, durable, one sink each. An adapter is one."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from typing import Any, Final

from deskwire.common.v1 import error_reason_pb2
from deskwire_common.auth import Role
from deskwire_common.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    VersionMismatch,
)
from deskwire_events.domain.filters import Wanted
from deskwire_events.domain.outcomes import Outcome
from deskwire_events.domain.readers import Selection, readable_topics, topics_of

SLOTS: Final = 64
"""Parts of all subscriptions, each worked on by one process."""
KIND: Final = "subscription"
"""The kind of these slots."""
PYTHON: Final = "python:"
"""What the target of an adapter begins with that the hub runs itself."""
DEAD_LETTERED: Final = "delivery_dead_lettered"


class SinkKind(StrEnum):
    """Where a subscription's events go."""

    STREAM = "stream"
    ADAPTER = "adapter"
    WEBHOOK = "webhook"


class State(IntEnum):
    """How a subscription is; the numbers are the contract's."""

    ACTIVE = 1
    RETRYING = 2
    STOPPED = 3
    PAUSED = 4


@dataclass(frozen=True, slots=True)
class Subscription:
    """A row: whose, what, where to.

    `incarnation` is its id for good, `slot` the part that it belongs to. `sink` is the configuration of its kind,
    `secrets` what is never shown, sealed. `state` is ACTIVE, PAUSED or STOPPED; RETRYING is its progress. `version`
    counts changes by people, `revision` all that its worker must hear of, `sequence` the events about it.
    """

    tenant: str
    subscription_id: str
    incarnation: str
    kind: SinkKind
    system_id: str
    wanted: Wanted
    sink: Mapping[str, Any]
    secrets: Mapping[str, str]
    state: State
    reason: str
    role: str
    created_at: int
    """Microseconds."""
    version: int = 1
    revision: int = 1
    sequence: int = 1
    removed: bool = False
    seek: Mapping[tuple[str, int], int] | None = None
    """Places that its worker is to begin with, in place of its own."""

    @property
    def slot(self) -> int:
        """The slot that it belongs to."""
        return slot_of(self.incarnation)

    @property
    def subject(self) -> str:
        """Subject and key of its events."""
        return f"{self.tenant}/{self.subscription_id}"

    @property
    def target(self) -> str:
        """An adapter's address."""
        return str(self.sink.get("target", ""))

    @property
    def accepts(self) -> tuple[str, ...]:
        """The event types that an adapter's Schema named; none: all."""
        return tuple(self.sink.get("accepts", ()))

    @property
    def config(self) -> str:
        """An adapter's configuration, JSON."""
        return str(self.sink.get("config", ""))

    @property
    def secret_refs(self) -> Mapping[str, str]:
        """Credentials that are read from elsewhere at every sign-in: name → reference."""
        found: Mapping[str, str] = self.sink.get("secret_refs", {})
        return found

    @property
    def event_types(self) -> frozenset[str]:
        """Event types that are delivered; empty: all."""
        asked, accepts = frozenset(self.wanted.event_types), frozenset(self.accepts)
        return asked & accepts if asked and accepts else asked or accepts

    @property
    def selection(self) -> Selection:
        """The topics that it reads: of its creator's role, if it was made for one."""
        if self.role:
            return readable_topics(Role(self.role), tuple(self.event_types))
        return topics_of(self.event_types)

    @property
    def running(self) -> bool:
        """Whether events are delivered."""
        return self.state is State.ACTIVE and not self.removed

    def changed(self, **fields: Any) -> Subscription:
        """It, changed by people: a new version that its worker hears of, with an event."""
        return replace(
            self, version=self.version + 1, revision=self.revision + 1, sequence=self.sequence + 1, **fields
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Progress:
    """How a subscription gets on; its worker writes it. `rejected_in_row`: dead letters since the last success."""

    delivered: int = 0
    dead: int = 0
    rejected_in_row: int = 0
    failing: bool = False
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """The end of one event's way. `number` orders them, 0 before it is stored."""

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


def owner_of_secrets(tenant: str, subscription_id: str) -> str:
    """What the sealed secrets of a subscription are bound to."""
    return f"subscription {tenant}/{subscription_id}"


def slot_of(incarnation: str) -> int:
    """The slot of a subscription: spread evenly, and never changed."""
    return zlib.crc32(incarnation.encode()) % SLOTS


def register(
    before: Subscription | None,
    *,
    tenant: str,
    adapter_id: str,
    incarnation: str,
    system_id: str,
    target: str,
    event_types: Sequence[str],
    accepts: Sequence[str],
    credentials: Mapping[str, str],
    now: int,
    config: str = "",
    secret_refs: Mapping[str, str] | None = None,
) -> Subscription:
    """A registered adapter; `before` is the subscription of this id, if there was one. It goes on in its places.

    Raises AlreadyExists when that one was not removed, or has another kind of sink.
    """
    if before is not None and (not before.removed or before.kind is not SinkKind.ADAPTER):
        raise registered_already(adapter_id)
    fresh = Subscription(
        tenant=tenant,
        subscription_id=adapter_id,
        incarnation=incarnation,
        kind=SinkKind.ADAPTER,
        system_id=system_id,
        wanted=Wanted(event_types=tuple(event_types)),
        sink={
            "target": target,
            "accepts": list(accepts),
            "config": config,
            "secret_refs": dict(secret_refs or {}),
        },
        secrets=dict(credentials),
        state=State.ACTIVE,
        reason="",
        role="",
        created_at=now,
    )
    if before is None:
        return fresh
    return replace(
        fresh,
        incarnation=before.incarnation,
        version=before.version + 1,
        revision=before.revision + 1,
        sequence=before.sequence + 1,
    )


def change_adapter(
    before: Subscription | None, fresh: Subscription, caller: str, expected: int
) -> Subscription:
    """An adapter as it is to be, in its places; `fresh` is what would be registered now, `caller` a caller's system.

    Credentials that aren't given again go on going where they went: nobody learns them by leading them elsewhere.

    Raises NotFound (ADAPTER_NOT_FOUND), PermissionDenied, VersionMismatch, InvalidArgument for another system, or
    where credentials have to be given again.
    """
    if before is None or before.removed or before.kind is not SinkKind.ADAPTER:
        raise not_found(fresh.subscription_id)
    check_system(before.system_id, caller)
    if fresh.system_id != before.system_id:
        raise InvalidArgument(
            f"it stands for {before.system_id}: register another one", field="adapter.system_id"
        )
    if expected and expected != before.version:
        raise VersionMismatch(before.version, expected)
    # What the hub runs itself calls the address that its configuration has.
    elsewhere = fresh.target != before.target or (
        fresh.target.startswith(PYTHON) and fresh.config != before.config
    )
    if before.secrets and not fresh.secrets and elsewhere:
        raise InvalidArgument(
            "another target or configuration needs the credentials again",
            field="adapter.credentials",
        )
    return before.changed(
        wanted=replace(before.wanted, event_types=fresh.wanted.event_types),
        sink=fresh.sink,
        secrets=fresh.secrets or before.secrets,
    )


def remove(before: Subscription | None, adapter_id: str, system: str) -> Subscription:
    """A removed adapter; `system` is the caller's when it may only remove its own.

    Raises NotFound (ADAPTER_NOT_FOUND), PermissionDenied.
    """
    if before is None or before.removed or before.kind is not SinkKind.ADAPTER:
        raise not_found(adapter_id)
    check_system(before.system_id, system)
    return before.changed(removed=True, secrets={})


def create(
    before: Subscription | None,
    *,
    tenant: str,
    subscription_id: str,
    incarnation: str,
    system_id: str,
    wanted: Wanted,
    role: str,
    now: int,
    kind: SinkKind = SinkKind.STREAM,
    sink: Mapping[str, Any] | None = None,
    secrets: Mapping[str, str] | None = None,
) -> Subscription:
    """A new subscription. Raises AlreadyExists when its id was taken, by a removed adapter too."""
    if before is not None:
        raise taken(subscription_id)
    return Subscription(
        tenant=tenant,
        subscription_id=subscription_id,
        incarnation=incarnation,
        kind=kind,
        system_id=system_id,
        wanted=wanted,
        sink=sink or {},
        secrets=secrets or {},
        state=State.ACTIVE,
        reason="",
        role=role,
        created_at=now,
    )


def check_change(
    before: Subscription | None, subscription_id: str, system: str, expected: int
) -> Subscription:
    """The subscription that is about to be changed; `system` is the caller's when it may only change its own.

    Raises NotFound, PermissionDenied, and VersionMismatch unless it has the `expected` version (0: any).
    """
    if before is None or before.removed:
        raise no_subscription(subscription_id)
    check_system(before.system_id, system)
    if expected and expected != before.version:
        raise VersionMismatch(before.version, expected)
    return before


def check_idle(subscription: Subscription) -> None:
    """Raises FailedPrecondition (INVALID_STATE) while events may be under way."""
    if subscription.state is State.ACTIVE:
        raise FailedPrecondition(
            f"subscription {subscription.subscription_id} is active: pause it first",
            reason=error_reason_pb2.ERROR_REASON_INVALID_STATE,
            metadata={"state": subscription.state.name},
        )


def check_running(subscription: Subscription) -> None:
    """Raises FailedPrecondition (INVALID_STATE) while nothing is delivered."""
    if subscription.state is not State.ACTIVE:
        raise FailedPrecondition(
            f"subscription {subscription.subscription_id} is {subscription.state.name.lower()}: resume it first",
            reason=error_reason_pb2.ERROR_REASON_INVALID_STATE,
            metadata={"state": subscription.state.name},
        )


def taken(subscription_id: str) -> AlreadyExists:
    """The error for an id that a subscription or an adapter has."""
    return AlreadyExists(f"there is a subscription or an adapter {subscription_id}")


def no_subscription(subscription_id: str) -> NotFound:
    """The error for a subscription that isn't there, or is another tenant's."""
    return NotFound(
        f"no subscription {subscription_id}",
        reason=error_reason_pb2.ERROR_REASON_SUBSCRIPTION_NOT_FOUND,
    )


def check_system(system_id: str, caller: str) -> None:
    """An integration acts for its own system only. `caller`: its system id, "" for others."""
    if caller and caller != system_id:
        raise PermissionDenied(f"a token of system {caller} can't act for {system_id}")


def after(progress: Progress, ends: Sequence[Outcome], detail: str) -> Progress:
    """The progress after these ends, in their order; `detail` is the last dead letter's."""
    good = sum(end.good for end in ends)
    row = progress.rejected_in_row
    for end in ends:
        row = row + 1 if end.dead else 0
    dead = len(ends) - good
    return replace(
        progress,
        delivered=progress.delivered + good,
        dead=progress.dead + dead,
        rejected_in_row=row,
        last_error=f"rejected: {detail}" if dead else progress.last_error,
    )


def registered_already(adapter_id: str) -> AlreadyExists:
    """The error for an adapter_id that is taken."""
    return AlreadyExists(f"adapter {adapter_id} is registered; remove it first")


def not_found(adapter_id: str) -> NotFound:
    """The error for an adapter that isn't there, or is another tenant's."""
    return NotFound(
        f"no adapter {adapter_id}", reason=error_reason_pb2.ERROR_REASON_ADAPTER_NOT_FOUND
    )
