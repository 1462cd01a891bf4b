"""Which topics carry what, and which roles may read them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from deskwire_common import topics
from deskwire_common.auth import Role
from deskwire_common.errors import InvalidArgument, PermissionDenied

CHANGES: Final = topics.CHANGES.name
"""The name under which the contract has the topics of captured tables."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Topics by name, and whether the topics of captured tables belong to them."""

    names: tuple[str, ...]
    changes: bool


def topics_of(event_types: Collection[str]) -> Selection:
    """Where events of these types are; none: all. Types that aren't deskwire's are external."""
    names = {_topic_name(event_type) for event_type in event_types} or set(topics.TOPICS)
    return Selection(tuple(sorted(names - {topics.CHANGES.name})), topics.CHANGES.name in names)


READERS: Final[Mapping[str, frozenset[Role]]] = {
    name: frozenset(Role(reader) for reader in topic.readers)
    for name, topic in topics.TOPICS.items()
}
"""Who may see what by Subscribe, by topic, as the topics' files say it."""


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


def is_own_type(event_type: str) -> bool:
    """Whether deskwire itself publishes this type, so that nobody else may."""
    return any(event_type in topic.event_types for topic in topics.TOPICS.values())


def _topic_name(event_type: str) -> str:
    try:
        return topics.topic_for(event_type).name
    except InvalidArgument:
        return topics.EXTERNAL.name
