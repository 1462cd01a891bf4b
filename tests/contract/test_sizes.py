"""No request that the contract's rules allow is too large for its method."""

from __future__ import annotations

from collections import Counter
from typing import Any

import protovalidate  # noqa: F401 - its import lets the rules be read
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from support.contract import METHODS, load_set, request_bytes_of, served, short

POOL = DescriptorPool()
for each in load_set().file:
    POOL.Add(each)
OPTIONS = message_factory.GetMessageClass(
    POOL.FindMessageTypeByName("google.protobuf.FieldOptions")
)
RULES = POOL.FindExtensionByName("buf.validate.field")

#: Fields whose length no rule bounds: the answer's only, a list of paths, or checked by the use case.
UNBOUNDED = {
    "Customer.customer_id",
    "FieldMask.paths",
    "Adapter.last_error",
    "Source.position",
    "Source.last_error",
    "CreateAttachmentRequest.sha256",
    "Struct.fields",
}
#: Bounded by bytes and not by what each item may have; their comments say so.
BY_BYTES = {"StreamMessages", "Publish", "ImportConversation", "Connect", "Link"}


def rules_of(field: FieldDescriptor) -> Any:
    return OPTIONS.FromString(field.GetOptions().SerializeToString()).Extensions[RULES]


def varint(value: int) -> int:
    return max(1, (value.bit_length() + 6) // 7)


def largest(message: Descriptor) -> int:
    """How many bytes a message has at the most by its rules, without the fields of UNBOUNDED."""
    size = 0
    alternatives: Counter[str] = Counter()
    for field in message.fields:
        of_field = largest_field(field)
        if field.containing_oneof is None:
            size += of_field
        else:
            name = field.containing_oneof.name
            alternatives[name] = max(alternatives[name], of_field)
    return size + alternatives.total()


def largest_field(field: FieldDescriptor) -> int:
    if f"{field.containing_type.name}.{field.name}" in UNBOUNDED:
        return 0
    rules = rules_of(field)
    tag = varint(field.number << 3)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        assert rules.map.max_pairs, f"{field.full_name} has no max_pairs"
        key, value = field.message_type.fields
        pair = 2 + largest_value(key, rules.map.keys) + largest_value(value, rules.map.values)
        return int(rules.map.max_pairs) * (tag + varint(pair) + pair)
    if field.is_repeated:
        assert rules.repeated.max_items, f"{field.full_name} has no max_items"
        return int(rules.repeated.max_items) * (tag + largest_value(field, rules.repeated.items))
    return tag + largest_value(field, rules)


def largest_value(field: FieldDescriptor, rules: Any) -> int:
    if field.message_type is not None:
        size = 20 if field.message_type.name in {"Timestamp", "Duration"} else 0
        size = size or largest(field.message_type)
    elif field.type == field.TYPE_STRING:
        text = rules.string
        # A character has up to four bytes.
        size = text.max_bytes or 4 * (text.max_len or text.len) or (36 if text.uuid else 0)
        size = size or max(map(len, getattr(text, "in")), default=0)
        assert size, f"{field.full_name} has no max_len"
    elif field.type == field.TYPE_BYTES:
        size = rules.bytes.max_len or rules.bytes.len
        assert size, f"{field.full_name} has no max_len"
    else:
        return 10
    return varint(size) + int(size)


@pytest.mark.parametrize(
    "method", [m for m in METHODS if served(m) and m.name not in BY_BYTES], ids=short
)
def test_the_largest_request_of_the_rules_is_taken(method: MethodDescriptor) -> None:
    request = POOL.FindMessageTypeByName(method.input_type.full_name)
    assert largest(request) <= request_bytes_of(method)
