"""Numbers pass the hub as they were published: as text on the topic and in streams, typed, and to an adapter."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.struct_pb2 import Struct

from deskwire.common.v1.json_value_pb2 import JsonObject
from deskwire.events.v1 import event_hub_service_pb2, hub_events_pb2
from deskwire_common import exact, topics
from deskwire_common.ids import RandomIds
from deskwire_common.kafka import Reader
from support import eventually
from support.refusals import refused

hub_pb: Any = event_hub_service_pb2
DATA = (
    '{"account":9223372036854775807,"big":18446744073709551615,"count":7,'
    '"in":[1,{"half":0.5}],"none":null,"price":129.00}'
)


async def publish(caller: Any, **data: Any) -> str:
    event = hub_pb.ExternalEvent(event_type="invoice_paid", subject="4711", **data)
    request = hub_pb.PublishRequest(request_id=RandomIds().uuid7(), events=[event])
    return str((await caller.hub.Publish(request)).event_ids[0])


def data_of(text: str) -> str:
    """The text of `data` in the text of an event."""
    return text[text.index('"data":') + 7 : text.index(',"trace_id"')]


async def on_the_topic(kafka: str, event_id: str) -> str:
    reader = Reader(kafka, [topics.EXTERNAL.name])
    await reader.start()
    try:
        while True:
            for record in await reader.read():
                if record.value is not None and event_id.encode() in record.value:
                    return record.value.decode()
    finally:
        await reader.close()


async def test_a_text_with_long_numbers_arrives_as_it_was(
    client: Any, kafka: str, tenant: str, crm: Any
) -> None:
    caller = client(tenant)
    await caller.register("crm", crm.target)
    event_id = await publish(caller, data_json=DATA)
    assert data_of(await on_the_topic(kafka, event_id)) == DATA
    async with caller.subscribe(
        earliest=Empty(), event_types=["invoice_paid"], json=True
    ) as stream:
        assert data_of((await stream.take(1))[0].json) == DATA
    await eventually(lambda: event_id in crm.ids, timeout=30)
    pushed = next(item for item in crm.got if item.event.event_id == event_id)
    assert data_of(pushed.json) == DATA
    async with caller.subscribe(earliest=Empty(), event_types=["invoice_paid"]) as stream:
        found = (await stream.take(1))[0].event
    for event in (found, pushed.event):
        typed = JsonObject()
        assert event.data.Unpack(typed)
        assert typed.fields["account"].int_value == 2**63 - 1
        assert typed.fields["big"].decimal_value == "18446744073709551615"
        assert typed.fields["price"].decimal_value == "129.00"
        assert exact.dumps(exact.to_plain(typed)) == DATA


async def test_whole_numbers_of_a_struct_have_no_point(client: Any, tenant: str) -> None:
    caller = client(tenant)
    data = Struct()
    data.update({"count": 7, "half": 0.5, "in": [1, {"n": -3}], "large": 2**53})
    await publish(caller, data=data)
    await publish(caller)
    async with caller.subscribe(
        earliest=Empty(), event_types=["invoice_paid"], json=True
    ) as stream:
        first, second = [each.json for each in await stream.take(2)]
    assert data_of(first) == '{"count":7,"half":0.5,"in":[1,{"n":-3}],"large":9007199254740992}'
    assert data_of(second) == "{}"


async def test_a_row_is_pushed_with_the_digits_it_had(
    client: Any, produce: Any, tenant: str, crm: Any
) -> None:
    row = exact.json_object({"id": 2**63 - 1, "points": 2**64 - 1, "price": "12.500", "share": 7.0})
    await client(tenant).register("crm", crm.target)
    changed = hub_events_pb2.RowChanged(table="t", operation="insert", after=row)
    topic = topics.changes_topic(f"s-{RandomIds().uuid7()[-12:]}", "t")
    await produce(topic, "row_changed", changed, tenant)
    await eventually(
        lambda: "row_changed" in [item.event.event_type for item in crm.got], timeout=30
    )
    item = next(item for item in crm.got if item.event.event_type == "row_changed")
    after = json.loads(item.json)["data"]["after"]
    assert list(map(repr, after.values())) == [
        "9223372036854775807",
        "18446744073709551615",
        "'12.500'",
        "7",
    ]
    typed = hub_events_pb2.RowChanged()
    assert item.event.data.Unpack(typed)
    assert typed == changed


@pytest.mark.parametrize(
    "text", ["", "7", "[]", "{", '{"a":NaN}', '{"a":"\\ud800"}', '{"a":' * 31 + "1" + "}" * 31]
)
async def test_what_is_no_json_object_is_refused(client: Any, tenant: str, text: str) -> None:
    error = await refused(publish(client(tenant), data_json=text))
    assert error.reason_name == "INVALID_FIELD"
    assert error.violations[0][0] == "events[0].data_json"
