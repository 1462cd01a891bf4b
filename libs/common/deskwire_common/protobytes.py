"""Protobuf bytes put together by hand, for hot paths: fields of known numbers from parts that are encoded already.

A tag is (field number << 3 | wire type) as a varint; wire type 0 is a varint, 2 is bytes with their length before.
Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import Final

_ONE: Final = [bytes((number,)) for number in range(128)]
_TWO: Final = [bytes((number & 127 | 128, number >> 7)) for number in range(16_384)]


def varint(number: int) -> bytes:
    """Return the base-128 varint of a number that isn't negative."""
    if number < 128:
        return _ONE[number]
    if number < 16_384:
        return _TWO[number]
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def text(tag: bytes, value: str) -> bytes:
    """Return a string field; nothing for an empty string."""
    if not value:
        return b""
    raw = value.encode()
    return tag + varint(len(raw)) + raw


def nested(tag: bytes, value: bytes) -> bytes:
    """Return a field of bytes or of an encoded message."""
    return tag + varint(len(value)) + value


def number(tag: bytes, value: int) -> bytes:
    """Return a varint field; nothing for 0."""
    return tag + varint(value) if value else b""
