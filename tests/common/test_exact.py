"""JSON of events: the digits that came in go out, as text, as messages, and as events."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from deskwire.common.v1.json_value_pb2 import JsonObject, JsonValue
from deskwire.events.v1 import event_pb2, hub_events_pb2
from deskwire_common import events, exact, topics
from deskwire_common.errors import InvalidArgument

#: As JSON writes them, and the kind that each has.
NUMBERS = {
    "0": "int_value",
    "7": "int_value",
    "-7": "int_value",
    "9007199254740993": "int_value",  # 2^53 + 1, no double
    "9223372036854775807": "int_value",
    "-9223372036854775808": "int_value",
    "9223372036854775808": "decimal_value",
    "18446744073709551615": "decimal_value",
    "123456789012345678901234567890": "decimal_value",
    "0.1": "double_value",
    "-12.5": "double_value",
    "1e+22": "double_value",
    "5e-324": "double_value",
    "129.00": "decimal_value",
    "7.0": "decimal_value",
    "-0.0": "double_value",
    "0.1000000000000000055511151231257827": "decimal_value",
    "79228162514264337593543950335.12345": "decimal_value",
    "1E+400": "decimal_value",
}
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.decimals(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def message_of(text: str) -> JsonObject:
    return exact.json_object(exact.loads(text))


@pytest.mark.parametrize(("number", "kind"), NUMBERS.items())
def test_a_number_keeps_its_digits_and_has_one_kind(number: str, kind: str) -> None:
    message = message_of(f'{{"n":{number}}}')
    assert message.fields["n"].WhichOneof("kind") == kind
    copy = JsonObject.FromString(message.SerializeToString())
    assert exact.dumps(exact.to_plain(copy)) == f'{{"n":{number}}}'


@given(plain)
def test_what_was_written_once_is_written_the_same_for_ever(value: Any) -> None:
    text = exact.dumps(exact.to_plain(exact.json_object({"value": value})))
    assert exact.dumps(exact.to_plain(message_of(text))) == text
    # Any other reader of JSON finds the same values.
    assert json.loads(text, parse_float=Decimal) == exact.loads(text)


@pytest.mark.parametrize("number", [7.0, -7.0, 0.0, 2.0**53, -(2.0**53)])
def test_a_whole_double_is_written_without_a_point(number: float) -> None:
    struct = Struct()
    struct["n"] = number
    for value in (exact.json_object(struct), exact.json_object({"n": number})):
        assert exact.dumps(exact.to_plain(value)) == f'{{"n":{int(number)}}}'
    other_writer = JsonObject(fields={"n": JsonValue(double_value=number)})
    assert exact.dumps(exact.to_plain(other_writer)) == f'{{"n":{int(number)}}}'


@pytest.mark.parametrize(
    "text",
    [
        '{"a":NaN}',
        '{"a":-Infinity}',
        '{"a":1e99999999999999999999}',
        '{"a":',
        "[" * 100_000,
        "",
        b"\xff",
    ],
)
def test_text_that_is_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidArgument):
        exact.loads(text)


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, Decimal("NaN"), Decimal("-Infinity"), "\ud800", {"\udfff": 1}],
)
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgument):
        exact.json_value([value])
    with pytest.raises((InvalidArgument, UnicodeEncodeError)):
        exact.dumps(value).encode()


@pytest.mark.parametrize(
    "value",
    [
        JsonValue(),
        JsonValue(double_value=math.nan),
        JsonValue(decimal_value="1,5"),
        JsonValue(decimal_value='1},"x":{'),
        JsonValue(decimal_value="1\n"),
        JsonValue(decimal_value="Infinity"),
        JsonValue(decimal_value="1e99999999999999999999"),
    ],
)
def test_a_message_that_is_no_json_is_never_written(value: JsonValue) -> None:
    with pytest.raises(InvalidArgument):
        exact.dumps(exact.to_plain(JsonObject(fields={"a": value})))


def test_the_depth_is_bounded_below_what_protobuf_reads() -> None:
    def nested(depth: int) -> Any:
        value: Any = 1
        for level in range(depth - 1):
            value = {"in": value} if level % 2 else [value]
        return {"in": value}

    deepest = exact.json_object(nested(exact.MAX_DEPTH))
    row = hub_events_pb2.RowChanged(after=deepest)
    assert hub_events_pb2.RowChanged.FromString(row.SerializeToString()) == row
    with pytest.raises(InvalidArgument):
        exact.json_object(nested(exact.MAX_DEPTH + 1))


def test_a_changed_field_says_null_as_the_value_that_it_is() -> None:
    data = {
        "changed": {"mobile": {"from": None, "to": "+86"}, "capacity": {"from": 3, "to": 2**60}}
    }
    form = {"event_type": "customer_updated", "data": data, "subject": "1"}
    event = events.from_json(json.dumps(form))
    found = events.unpack(event)
    assert getattr(found.changed["mobile"], "from") == JsonValue(null_value=0)
    assert found.changed["capacity"].to.int_value == 2**60
    data["changed"] = dict(sorted(data["changed"].items()))
    assert exact.dumps(events.to_json(event)["data"]) == exact.dumps(data)
    assert event_pb2.FieldChange().HasField("to") is False


@pytest.mark.parametrize("number", [*NUMBERS, "[1,[2.50,{}]]", "null"])
def test_an_event_carries_numbers_from_text_to_text(number: str) -> None:
    for topic, kind, name in (
        (topics.EXTERNAL, "invoice_paid", ""),
        (topics.changes_topic("crm", "t"), "row_changed", "after"),
    ):
        data = f'{{"{name}":{{"n":{number}}}}}' if name else f'{{"n":{number}}}'
        value = f'{{"event_type":"{kind}","data":{data}}}'.encode()
        for _ in range(2):
            event = events.decode(topic, value)
            value = events.encode_event(event, topic)
            assert f'"data":{data}' in value.decode()


@pytest.mark.parametrize(
    "data",
    [
        '{"after":7}',
        '{"after":[]}',
        '{"after":{"a":NaN}}',
        "[]",
        "7",
        '{"position":{"a":1}}',
        '{"key":"x"}',
    ],
)
def test_data_of_another_form_is_refused(data: str) -> None:
    with pytest.raises(InvalidArgument):
        events.from_json(f'{{"event_type":"row_changed","data":{data}}}')
