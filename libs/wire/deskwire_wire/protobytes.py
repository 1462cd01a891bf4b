"""Protobuf bytes put together by hand, for hot paths: fields of known numbers from parts that are encoded already.

A tag is (field number << 3 | wire type) as a varint; wire type 0 is a varint, 2 is bytes with their length before.
Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import Final

_TABLED: Final = 16_384
SHORT: Final = [
    bytes((number,)) if number < 128 else bytes((number & 127 | 128, number >> 7))
    for number in range(_TABLED)
]
"""The varints of numbers below 16,384: they save a call for lengths that can't be greater."""


def varint(number: int) -> bytes:
    """Return the base-128 varint of a number that isn't negative."""
    if number < _TABLED:
        return SHORT[number]
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def text(tag: bytes, value: str) -> bytes:
    """Return a string field; nothing for an empty string."""
    return nested(tag, value.encode()) if value else b""


def nested(tag: bytes, value: bytes) -> bytes:
    """Return a field of bytes or of an encoded message."""
    size = len(value)
    # This saves a call for nearly all lengths, some twenty times a message.
    return tag + (SHORT[size] if size < _TABLED else varint(size)) + value


def number(tag: bytes, value: int) -> bytes:
    """Return a varint field; nothing for 0."""
    return tag + varint(value) if value else b""
