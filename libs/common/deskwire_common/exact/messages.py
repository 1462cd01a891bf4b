"""Messages of the contract and plain values: protobuf's JSON, with JsonValues as the JSON that they are.

protobuf's own printer would show a JsonValue's kinds, and the names of maps in no order; it does the rest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from deskwire.common.v1.json_value_pb2 import JsonArray, JsonObject, JsonValue
from deskwire_common.exact.values import (
    json_object,
    json_value,
    plain_array,
    plain_object,
    plain_value,
)

_PLAIN: Final[Mapping[str, Callable[[Any], Any]]] = {
    JsonValue.DESCRIPTOR.full_name: plain_value,
    JsonArray.DESCRIPTOR.full_name: plain_array,
    JsonObject.DESCRIPTOR.full_name: plain_object,
}


def to_plain(message: Message) -> Any:
    """Return a message in JSON's form: snake_case, in the order of the fields' numbers, without what is unset.

    Raises InvalidArgument for a JsonValue that is no JSON.
    """
    descriptor = message.DESCRIPTOR
    convert = _PLAIN.get(descriptor.full_name)
    if convert is not None:
        return convert(message)
    ours = _our_fields(descriptor)
    if not ours:
        return _protobuf_json(message)
    fields = message.ListFields()
    rest = type(message)(**{field.name: value for field, value in fields if field.name not in ours})
    others = _protobuf_json(rest)
    return {
        field.name: _plain_field(field, value) if field.name in ours else others[field.name]
        for field, value in fields
    }


def fill(message: Message, plain: Any) -> None:
    """Set the fields of an empty message from JSON's form; unknown names are ignored.

    Raises ValueError, TypeError or AttributeError for another form, and InvalidArgument as `json_value` does.
    """
    if isinstance(message, JsonObject):
        message.CopyFrom(json_object(plain))
    elif isinstance(message, JsonValue):
        message.CopyFrom(json_value(plain))
    elif isinstance(message, JsonArray):
        message.CopyFrom(json_value(plain).array_value)
    else:
        ours = _our_fields(message.DESCRIPTOR)
        rest = {name: item for name, item in plain.items() if name not in ours}
        json_format.ParseDict(_doubles(rest), message, ignore_unknown_fields=True)
        for name, field in ours.items():
            if name in plain:
                _fill_field(message, field, plain[name])


def _protobuf_json(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, unquote_int64_if_possible=True
    )
    for name in plain.keys() & _maps(message.DESCRIPTOR):
        plain[name] = dict(sorted(plain[name].items()))
    return plain


def _plain_field(field: FieldDescriptor, value: Any) -> Any:
    if _is_map(field):
        return {key: to_plain(value[key]) for key in sorted(value)}
    if field.is_repeated:
        return [to_plain(each) for each in value]
    return to_plain(value)


def _fill_field(message: Message, field: FieldDescriptor, plain: Any) -> None:
    target = getattr(message, field.name)
    if _is_map(field):
        for key, item in plain.items():
            fill(target[key], item)
    elif field.is_repeated:
        for item in plain:
            fill(target.add(), item)
    elif plain is not None or isinstance(target, JsonValue):
        target.SetInParent()
        fill(target, plain)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


@functools.cache
def _maps(descriptor: Descriptor) -> frozenset[str]:
    """The names of the fields that are maps."""
    return frozenset(field.name for field in descriptor.fields if _is_map(field))


@functools.cache
def _our_fields(descriptor: Descriptor) -> Mapping[str, FieldDescriptor]:
    """The fields in which there is a JsonValue or another map somewhere, by name."""
    return {
        field.name: field
        for field in descriptor.fields
        if field.message_type is not None and _is_ours(field.message_type, frozenset())
    }


def _is_ours(descriptor: Descriptor, above: frozenset[str]) -> bool:
    if descriptor.full_name in _PLAIN or _maps(descriptor):
        return True
    if descriptor.full_name in above:
        return False
    above |= {descriptor.full_name}
    return any(
        field.message_type is not None and _is_ours(field.message_type, above)
        for field in descriptor.fields
    )


def _doubles(plain: Any) -> Any:
    """Decimals as floats, for fields of protobuf's own number types."""
    if isinstance(plain, Decimal):
        return float(plain)
    if isinstance(plain, dict):
        return {name: _doubles(item) for name, item in plain.items()}
    if isinstance(plain, list):
        return [_doubles(item) for item in plain]
    return plain
