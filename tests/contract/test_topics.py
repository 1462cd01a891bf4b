"""The examples in the topic files are the golden forms: each decodes, and encodes to itself, as text.

Compared as values, 7 and 7.0 would be equal, which they aren't for readers in other languages.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
import yaml

from deskwire.events.v1.event_pb2 import Event
from deskwire_common import events
from deskwire_common.topics import TOPICS

FOLDER = files("deskwire") / "contract" / "topics"
DOCUMENTS: list[dict[str, Any]] = [
    yaml.safe_load(path.read_text()) for path in sorted(FOLDER.iterdir(), key=lambda p: p.name)
]
EXAMPLES = [(document, example) for document in DOCUMENTS for example in document["examples"]]


def text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def names(value: Any) -> str | None:
    return value.get("event_type")


@pytest.mark.parametrize(("document", "example"), EXAMPLES, ids=names)
def test_example_is_the_golden_form(document: dict[str, Any], example: dict[str, Any]) -> None:
    event = events.from_json(json.dumps(example).encode())
    assert isinstance(event, Event)
    assert text(events.to_json(event)) == text(example)


@pytest.mark.parametrize(("document", "example"), EXAMPLES, ids=names)
def test_value_on_the_topic_decodes_to_the_example(
    document: dict[str, Any], example: dict[str, Any]
) -> None:
    topic = TOPICS[document["topic"]]
    event = events.from_json(json.dumps(example).encode())
    value = events.encode_event(event, topic)
    if topic.value == "json":
        assert value.decode() == text(example)
    assert text(events.to_json(events.decode(topic, value, []))) == text(example)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["topic"])
def test_every_event_type_has_an_example(document: dict[str, Any]) -> None:
    shown = {example["event_type"] for example in document["examples"]}
    if document.get("external"):
        assert shown
    else:
        assert shown == set(document["event_types"])


def test_the_asked_for_form() -> None:
    example = next(e for _, e in EXAMPLES if e["event_type"] == "customer_updated")
    assert isinstance(example["data"]["timestamp"], int)
    assert set(example["data"]) >= {"user_id", "new_mobile", "timestamp", "customer", "changed"}
    assert len(example["trace_id"]) == 32
