"""Text: what `loads` reads, `dumps` writes with the same digits."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from deskwire_common.errors import InvalidArgument

_SEPARATORS: Final = (",", ":")


class _HasDecimal(Exception):
    """The encoder of the standard library can't write this one."""


def loads(text: bytes | str) -> Any:
    """Read JSON; numbers with a fraction or an exponent are Decimals. Raises InvalidArgument for anything else."""
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_refuse)
    except (ValueError, InvalidOperation, RecursionError) as error:
        raise InvalidArgument("not JSON, or numbers or depth beyond all use") from error


def dumps(value: Any) -> str:
    """Write plain values as compact JSON, in the order of their dicts. Raises InvalidArgument for NaN and infinity."""
    try:
        # Decimals are rare, and the standard library's encoder is written in C.
        return json.dumps(
            value, ensure_ascii=False, separators=_SEPARATORS, allow_nan=False, default=_default
        )
    except _HasDecimal:
        return _written(value)
    except ValueError as error:
        raise InvalidArgument("JSON has no such number") from error


def _written(value: Any) -> str:
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise InvalidArgument("JSON has no such number")
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{dumps(key)}:{_written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return dumps(value)


def _default(value: object) -> Any:
    if isinstance(value, Decimal):
        raise _HasDecimal
    raise TypeError(f"no JSON form for {type(value).__name__}")


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
