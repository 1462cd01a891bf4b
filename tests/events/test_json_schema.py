"""Schemas of others: what they can't do is reach outside, match for hours, or double the work."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deskwire_common.errors import InvalidArgument
from deskwire_events import json_schema
from deskwire_events.json_schema import SchemaInvalid
from deskwire_events.secret_refs import parse_secret_rules


def check(schema: Any, value: Any) -> None:
    json_schema.check(json.dumps(schema), value, "config")


def test_faults_have_their_path() -> None:
    schema = {
        "type": "object",
        "properties": {"hosts": {"type": "array", "items": {"type": "string", "pattern": "^h"}}},
        "additionalProperties": False,
    }
    check(schema, {"hosts": ["h1"]})
    with pytest.raises(InvalidArgument) as caught:
        check(schema, {"hosts": ["h1", "x"]})
    assert caught.value.message == "config.hosts[1]: it doesn't match '^h'"


@pytest.mark.parametrize(
    "schema",
    [
        # Outside: nothing may be fetched.
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"$dynamicRef": "http://127.0.0.1:9/schema.json"},
        # Patterns that RE2 hasn't, and property names of patterns.
        {"properties": {"a": {"pattern": "(a)\\1"}}},
        {"patternProperties": {"(a+)+$": {"type": "string"}}},
        # No schema at all.
        {"type": "nonsense"},
        [],
        # Twice as much with each level, and for ever.
        {
            "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
            | {"d40": {}},
            "$ref": "#/$defs/d0",
        },
        {"$ref": "#"},
        # Many choices for many items.
        {"properties": {"list": {"items": {"anyOf": [{"const": n} for n in range(400)]}}}},
    ],
)
def test_schemas_that_no_value_is_checked_with(schema: Any) -> None:
    with pytest.raises(SchemaInvalid):
        check(schema, {"a": "a" * 40 + "!", "list": [399] * 400})


def test_a_pattern_that_others_would_match_for_hours_ends() -> None:
    with pytest.raises(InvalidArgument):
        check({"properties": {"a": {"pattern": "^(a+)+$"}}}, {"a": "a" * 5_000 + "!"})


def test_a_schema_is_bounded() -> None:
    with pytest.raises(SchemaInvalid, match="65536 bytes"):
        check({"description": "x" * 70_000}, {})


@pytest.mark.parametrize(
    "text",
    ["env:A", "shop=", "shop=A", "shop=env:", "=env:A", "shop=file:relative", "shop=http://a"],
)
def test_rules_of_secrets_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"TENANT=|whole path"):
        parse_secret_rules(text)
