"""Plain values and the contract's JsonValue, both ways."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final, TypeAlias

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import NULL_VALUE, Struct

from deskwire.common.v1.json_value_pb2 import JsonArray, JsonObject, JsonValue
from deskwire_common.errors import InvalidArgument

Plain: TypeAlias = (
    "bool | int | float | Decimal | str | Sequence[Plain] | Mapping[str, Plain] | None"
)

#: Objects and arrays within each other. A message of protobuf may be 100 deep, and each level takes up to three.
MAX_DEPTH: Final = 30
_INT64: Final = range(-(2**63), 2**63)
#: Up to here every whole number is a double.
_WHOLE: Final = 2**53
#: Python takes no longer ints from text, which would cost the square of their length.
_DIGITS: Final = 4300
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)


def json_value(plain: Plain, depth: int = MAX_DEPTH) -> JsonValue:  # noqa: PLR0911 - one line per kind
    """Return a plain value, at most `depth` deep, in the contract's form. Raises InvalidArgument when it is no JSON."""
    match plain:
        case None:
            return JsonValue(null_value=NULL_VALUE)
        case bool():
            return JsonValue(bool_value=plain)
        case str():
            return JsonValue(string_value=_text(plain))
        case int():
            if plain in _INT64:
                return JsonValue(int_value=plain)
            return JsonValue(decimal_value=str(plain))
        case float():
            return _double(plain)
        case Decimal():
            return _decimal(plain)
        case Mapping():
            return JsonValue(object_value=json_object(plain, depth))
        case list() | tuple():
            _check(depth)
            array = JsonArray(values=[json_value(each, depth - 1) for each in plain])
            return JsonValue(array_value=array)
        case _:
            raise TypeError(f"no JSON form for {type(plain).__name__}")


def json_object(plain: Mapping[str, Plain] | Struct, depth: int = MAX_DEPTH) -> JsonObject:
    """Return an object, at most `depth` deep, in the contract's form. Raises InvalidArgument when it is no JSON."""
    if isinstance(plain, Struct):
        plain = _plain_struct(plain)
    _check(depth)
    return JsonObject(
        fields={_text(name): json_value(each, depth - 1) for name, each in plain.items()}
    )


def plain_value(value: JsonValue) -> Any:
    """Return the plain form. Raises InvalidArgument where another's writer made what is no JSON."""
    kind = value.WhichOneof("kind")
    match kind:
        case "null_value":
            return None
        case "int_value" | "bool_value" | "string_value":
            return getattr(value, kind)
        case "double_value":
            return _plain_double(value.double_value)
        case "decimal_value":
            return _plain_decimal(value.decimal_value)
        case "array_value":
            return plain_array(value.array_value)
        case "object_value":
            return plain_object(value.object_value)
        case _:
            raise InvalidArgument("a JSON value has no kind, or one that is unknown here")


def plain_array(array: JsonArray) -> list[Any]:
    """Return the plain form of an array; see `plain_value`."""
    return [plain_value(each) for each in array.values]


def plain_object(value: JsonObject) -> dict[str, Any]:
    """Return the plain form of an object, sorted by name: a map has no order of its own. See `plain_value`."""
    fields = value.fields
    return {name: plain_value(fields[name]) for name in sorted(fields)}


def _double(number: float) -> JsonValue:
    if not math.isfinite(number):
        raise InvalidArgument("JSON has no NaN and no infinity")
    plain = _plain_double(number)
    if isinstance(plain, int):
        return JsonValue(int_value=plain)
    return JsonValue(double_value=number)


def _plain_double(number: float) -> int | float:
    """7 for 7.0; -0.0 stays, since 0 would lose its sign."""
    if abs(number) <= _WHOLE and number.is_integer() and (number or math.copysign(1, number) > 0):
        return int(number)
    return number


def _decimal(number: Decimal) -> JsonValue:
    if not number.is_finite():
        raise InvalidArgument("JSON has no NaN and no infinity")
    double = float(number)
    if (
        math.isfinite(double)
        and isinstance(_plain_double(double), float)
        and Decimal(repr(double)).as_tuple() == number.as_tuple()
    ):
        return JsonValue(double_value=double)
    return JsonValue(decimal_value=str(number))


def _plain_decimal(text: str) -> int | Decimal:
    if _NUMBER.fullmatch(text) is None:
        raise InvalidArgument("a decimal_value is no JSON number")
    if text.removeprefix("-").isdigit() and len(text) < _DIGITS:
        return int(text)
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise InvalidArgument("a decimal_value is beyond all use") from error


def _plain_struct(struct: Struct) -> dict[str, Plain]:
    try:
        plain: dict[str, Plain] = MessageToDict(struct)
    except ValueError as error:
        raise InvalidArgument("JSON has no NaN and no infinity") from error
    return plain


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(
            "a text has half of a surrogate pair, which is no character"
        ) from None
    return text


def _check(depth: int) -> None:
    if depth <= 0:
        raise InvalidArgument(f"objects and arrays may be {MAX_DEPTH} deep")
