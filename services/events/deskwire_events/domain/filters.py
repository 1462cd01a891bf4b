"""Which events a subscription wants, decided by the attributes of a record's headers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol


class Attributes(Protocol):
    """What the headers of a record say."""

    tenant: bytes
    kind: bytes
    subject: bytes
    source: bytes
    topic: str

    def attribute(self, name: str) -> bytes | None:
        """A CloudEvents attribute; None when the record lacks it."""
        ...


class Condition(Protocol):
    """A condition on the event itself."""

    def __call__(self, attributes: Attributes) -> bool:
        """Whether it holds; False for a record that it can't be asked of."""
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """A filter as its owner wrote it. Empty parts want everything; all parts must hold.

    `attributes`: CloudEvents attributes by name, which must have these values. `cel`: an expression over the event.
    """

    event_types: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    cel: str = ""


class Filter:
    """The filter of one tenant's subscription, ready for use.

    `not_source`: the origin whose events don't come back to it.
    `not_about`: (event type, subject) that it mustn't get.
    """

    __slots__ = (
        "_attributes",
        "_condition",
        "_not_about",
        "_not_source",
        "_plain",
        "_subjects",
        "kinds",
        "tenant",
    )

    def __init__(
        self,
        tenant: str,
        wanted: Wanted,
        *,
        kinds: Collection[str] | None = None,
        not_source: str = "",
        not_about: tuple[str, str] | None = None,
        condition: Condition | None = None,
    ) -> None:
        """`kinds`: event types in place of those that are `wanted`."""
        self.tenant = tenant.encode()
        self.kinds = frozenset(
            kind.encode() for kind in (wanted.event_types if kinds is None else kinds)
        )
        self._subjects = frozenset(subject.encode() for subject in wanted.subjects)
        self._attributes = [(name, text.encode()) for name, text in wanted.attributes.items()]
        self._not_source = not_source.encode()
        self._not_about = None if not_about is None else tuple(each.encode() for each in not_about)
        self._condition = condition
        self._plain = not (
            self._subjects or self._attributes or not_source or not_about or condition
        )

    def wants(self, record: Attributes) -> bool:
        """Whether a record passes. The index has asked for tenant and type already; this asks for all."""
        return (
            record.tenant == self.tenant
            and (not self.kinds or record.kind in self.kinds)
            and self.passes(record)
        )

    def passes(self, record: Attributes) -> bool:
        """Whether a record of the right tenant and type passes the rest."""
        if self._plain:
            return True
        if self._subjects and record.subject not in self._subjects:
            return False
        if self._not_source and record.source == self._not_source:
            return False
        if self._not_about is not None and self._not_about == (record.kind, record.subject):
            return False
        if any(record.attribute(name) != text for name, text in self._attributes):
            return False
        return self._condition is None or self._condition(record)
