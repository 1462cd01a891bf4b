"""The registry of Kafka topics, read from the contract (`deskwire/contract/topics/*.yaml`).

Names of topics are written here and in the contract, nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final, Literal

import yaml

from deskwire_common.errors import InvalidArgument

_UNITS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
#: Kafka allows 249 characters of this set in a topic's name.
_FOREIGN: Final = re.compile(r"[^A-Za-z0-9._-]")
_MAX_NAME: Final = 249


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic of the contract; `retention_ms` in milliseconds, -1 for ever; `readers` are roles."""

    name: str
    description: str
    value: Literal["json", "protobuf"]
    key: str
    partitions: int
    retention_ms: int
    event_types: Mapping[str, str]
    readers: tuple[str, ...]
    external: bool = False
    examples: tuple[Mapping[str, Any], ...] = field(default=(), compare=False)

    @property
    def templated(self) -> bool:
        """Whether the name is a template (`deskwire.changes.<source>.<table>`) and no topic by itself."""
        return "<" in self.name

    def config(self) -> dict[str, str]:
        """The broker's settings of this topic."""
        return {"retention.ms": str(self.retention_ms), "cleanup.policy": "delete"}


def _milliseconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if text == "forever":
        return -1
    if match is None:
        raise ValueError(f"retention {text!r} is not a number with s, m, h or d")
    return int(match[1]) * _UNITS[match[2]]


def _load() -> dict[str, Topic]:
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    topics: dict[str, Topic] = {}
    folder = files("deskwire") / "contract" / "topics"
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if not path.name.endswith(".yaml"):
            continue
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506 - a safe loader
        topic = Topic(
            name=document["topic"],
            description=document["description"],
            value=document["value"],
            key=document["key"],
            partitions=document["partitions"],
            retention_ms=_milliseconds(document["retention"]),
            event_types=MappingProxyType(document.get("event_types") or {}),
            readers=tuple(document["readers"]),
            external=bool(document.get("external", False)),
            examples=tuple(document.get("examples") or ()),
        )
        topics[topic.name] = topic
    return topics


#: Every topic of the contract by its name.
TOPICS: Final[Mapping[str, Topic]] = MappingProxyType(_load())

ACCESS: Final = TOPICS["deskwire.access"]
AGENTS: Final = TOPICS["deskwire.agents"]
CHANGES: Final = TOPICS["deskwire.changes.<source>.<table>"]
CONVERSATIONS: Final = TOPICS["deskwire.conversations"]
CUSTOMERS: Final = TOPICS["deskwire.customers"]
DELIVERIES: Final = TOPICS["deskwire.deliveries"]
EXTERNAL: Final = TOPICS["deskwire.external"]
MESSAGES: Final = TOPICS["deskwire.messages"]
SOURCES: Final = TOPICS["deskwire.sources"]
TICKETS: Final = TOPICS["deskwire.tickets"]

_CHANGES_PREFIX: Final = CHANGES.name.partition("<")[0]
#: Matches every topic of row changes, for `Consumer` and `Reader`.
CHANGES_PATTERN: Final = "^" + re.escape(_CHANGES_PREFIX) + "[^.]+[.].+$"
_BY_EVENT_TYPE: Final = {kind: topic for topic in TOPICS.values() for kind in topic.event_types}
if sum(len(topic.event_types) for topic in TOPICS.values()) != len(_BY_EVENT_TYPE):
    raise ValueError("an event type is on two topics of the contract")


def topic_for(event_type: str) -> Topic:
    """The topic of an event type; InvalidArgument for a type that the contract doesn't have."""
    topic = _BY_EVENT_TYPE.get(event_type)
    if topic is None:
        raise InvalidArgument(f"no topic carries the event type {event_type!r}", field="event_type")
    return topic


def changes_topic(source: str, table: str) -> Topic:
    """The topic of one captured table; characters that Kafka doesn't allow become `_`, as do dots of the source."""
    name = (
        f"{_CHANGES_PREFIX}{_FOREIGN.sub('_', source).replace('.', '_')}.{_FOREIGN.sub('_', table)}"
    )
    if len(name) > _MAX_NAME:
        raise InvalidArgument(
            f"the topic name {name!r} is longer than {_MAX_NAME} characters", field="table"
        )
    return replace(CHANGES, name=name)


def by_name(name: str) -> Topic:
    """The topic of a name on Kafka, also of a captured table; InvalidArgument when it isn't a topic of deskwire."""
    topic = TOPICS.get(name)
    if topic is not None and not topic.templated:
        return topic
    if re.match(CHANGES_PATTERN, name):
        return replace(CHANGES, name=name)
    raise InvalidArgument(f"{name!r} is no topic of deskwire", field="topic")


def fixed_topics() -> list[Topic]:
    """All topics that exist from the start (without those per captured table)."""
    return [topic for topic in TOPICS.values() if not topic.templated]
