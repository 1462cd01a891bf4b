"""Rows of the binlog, byte by byte: mysql-replication falsifies some values, and gives up at others.

The format is MariaDB's `sql/log_event.h` (rows), `sql/compat56.cc` (times) and `strings/decimal.c`.
"""

from __future__ import annotations

import datetime as dt
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pymysqlreplication.constants import FIELD_TYPE

from deskwire_cdc.domain.changes import Json
from deskwire_cdc.domain.sources import SourceUnusable
from deskwire_cdc.sources.mariadb.charsets import BINARY, Charsets, Decode
from deskwire_cdc.sources.values import render, render_float, render_time, shortest_single

Read = Callable[[bytes, int], tuple[Json, int]]
"""Reads a value at a place of an event; returns it and where the next one begins."""
_EPOCH: Final = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - the zone is written by the caller
#: Bytes of 0 to 9 decimal digits.
_DIGIT_BYTES: Final = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)
#: Bytes of a fraction of 0 to 6 digits.
_FRACTION_BYTES: Final = (0, 1, 1, 2, 2, 3, 3)
_INTEGERS: Final = {
    FIELD_TYPE.TINY: 1,
    FIELD_TYPE.SHORT: 2,
    FIELD_TYPE.INT24: 3,
    FIELD_TYPE.LONG: 4,
    FIELD_TYPE.LONGLONG: 8,
}
#: As MariaDB 10.0 wrote them.
_OLD_TIMES: Final = frozenset([FIELD_TYPE.TIME, FIELD_TYPE.DATETIME, FIELD_TYPE.TIMESTAMP])


class Undecodable(Exception):
    """A value that its column's charset doesn't have; `end`: where the next value begins."""

    def __init__(self, raw: bytes, end: int, why: str) -> None:
        super().__init__(why)
        self.raw = raw
        self.end = end


@dataclass(frozen=True, slots=True)
class BinlogColumn:
    """A column as it was when the row was written."""

    name: str
    is_key: bool
    read: Read


@dataclass(slots=True)
class Image:
    """A row before or after a change."""

    row: dict[str, Json]
    """A value that can't be read is Base64 of its bytes."""
    bad: str = ""
    """Why a value can't be read; empty: all can."""


def describe(event: Any, charsets: Charsets) -> tuple[BinlogColumn, ...]:
    """Return the columns of a row event's table. Raises SourceUnusable."""
    if any(not column.name for column in event.columns):
        raise SourceUnusable(
            "binlog_row_metadata",
            "The binlog has rows without column names: set binlog_row_metadata=FULL; delete this source "
            "and create it again with a snapshot.",
        )
    if not any(column.is_primary for column in event.columns):
        raise SourceUnusable("primary_key", f"Table {event.table} has no primary key any more.")
    return tuple(
        BinlogColumn(column.name, bool(column.is_primary), _reader(event.table, column, charsets))
        for column in event.columns
    )


def images(
    event: Any, columns: Sequence[BinlogColumn], *, pairs: bool
) -> Iterator[tuple[list[Image], int]]:
    """Yield each row's image or, for updates, its two, and its bytes. Raises SourceUnusable."""
    present = [event.columns_present_bitmap]
    if pairs:
        present.append(event.columns_present_bitmap2)
    count = len(columns)
    if any(
        int.from_bytes(bits, "little") & ((1 << count) - 1) != (1 << count) - 1 for bits in present
    ):
        raise SourceUnusable(
            "binlog_row_image",
            "The binlog has rows without all columns: set binlog_row_image=FULL; delete this source and "
            "create it again with a snapshot.",
        )
    data = bytes(event.packet.read(event.event_size - event.packet.read_bytes))
    at = 0
    while at < len(data):
        began, found = at, []
        for _ in present:
            image, at = _image(data, at, columns)
            found.append(image)
        yield found, at - began


def _image(data: bytes, at: int, columns: Sequence[BinlogColumn]) -> tuple[Image, int]:
    nulls = int.from_bytes(data[at : at + (len(columns) + 7) // 8], "little")
    at += (len(columns) + 7) // 8
    image = Image({})
    for index, column in enumerate(columns):
        if nulls >> index & 1:
            image.row[column.name] = None
            continue
        try:
            image.row[column.name], at = column.read(data, at)
        except Undecodable as error:
            image.row[column.name], at = render(error.raw), error.end
            image.bad = image.bad or f"column {column.name}: {error}"
    return image, at


def _reader(table: str, column: Any, charsets: Charsets) -> Read:  # noqa: C901, PLR0911, PLR0912 - one per type
    kind = column.type
    if size := _INTEGERS.get(kind):
        return _integer(size, signed=not column.unsigned)
    if kind in _OLD_TIMES:
        raise SourceUnusable(
            "column_type",
            f"Column {table}.{column.name} keeps times in the format of MariaDB 10.0: "
            f"ALTER TABLE {table} FORCE with mysql56_temporal_format=ON.",
        )
    match kind:
        case FIELD_TYPE.FLOAT:
            return lambda data, at: (
                render_float(shortest_single(struct.unpack_from("<f", data, at)[0])),
                at + 4,
            )
        case FIELD_TYPE.DOUBLE:
            return lambda data, at: (render_float(struct.unpack_from("<d", data, at)[0]), at + 8)
        case FIELD_TYPE.NEWDECIMAL:
            return _decimal(column.precision, column.decimals)
        case FIELD_TYPE.VARCHAR | FIELD_TYPE.STRING:
            lengths = 2 if column.max_length > 255 else 1
            if column.charset_id == BINARY:
                # The binlog leaves trailing zero bytes of BINARY(n) out.
                pad = column.max_length if kind == FIELD_TYPE.STRING else 0
                return _bytes(lengths, pad)
            return _text(lengths, charsets.decoder(column.charset_id))
        case FIELD_TYPE.BLOB:
            if column.charset_id == BINARY:
                return _bytes(column.length_size, 0)
            return _text(column.length_size, charsets.decoder(column.charset_id))
        case FIELD_TYPE.ENUM:
            return _enum(column.size, _labels(column.enum_values[1:], column, charsets))
        case FIELD_TYPE.SET:
            return _set(column.size, _labels(column.set_values, column, charsets))
        case FIELD_TYPE.BIT:
            return _bits(column.bits, column.bytes)
        case FIELD_TYPE.YEAR:
            return lambda data, at: (1900 + data[at] if data[at] else 0, at + 1)
        case FIELD_TYPE.DATE:
            return _date
        case FIELD_TYPE.DATETIME2:
            return _datetime(column.fsp)
        case FIELD_TYPE.TIMESTAMP2:
            return _timestamp(column.fsp)
        case FIELD_TYPE.TIME2:
            return _time(column.fsp)
        case _:
            raise SourceUnusable(
                "column_type",
                f"Column {table}.{column.name} has type {kind}, which can't be captured.",
            )


def _labels(raw: Sequence[str], column: Any, charsets: Charsets) -> list[str]:
    decode = charsets.decoder(column.charset_id)
    return [decode(label.encode("latin-1")) for label in raw]


def _integer(size: int, *, signed: bool) -> Read:
    def read(data: bytes, at: int) -> tuple[Json, int]:
        return int.from_bytes(data[at : at + size], "little", signed=signed), at + size

    return read


def _bytes(lengths: int, pad: int) -> Read:
    def read(data: bytes, at: int) -> tuple[Json, int]:
        begin = at + lengths
        end = begin + int.from_bytes(data[at:begin], "little")
        return render(data[begin:end].ljust(pad, b"\0")), end

    return read


def _text(lengths: int, decode: Decode) -> Read:
    def read(data: bytes, at: int) -> tuple[Json, int]:
        begin = at + lengths
        end = begin + int.from_bytes(data[at:begin], "little")
        try:
            return decode(data[begin:end]), end
        except UnicodeDecodeError as error:
            why = f"byte {error.object[error.start]:#04x} is no {error.encoding}"
            raise Undecodable(data[begin:end], end, why) from None

    return read


def _enum(size: int, labels: Sequence[str]) -> Read:
    def read(data: bytes, at: int) -> tuple[Json, int]:
        number = int.from_bytes(data[at : at + size], "little")
        return labels[number - 1] if number else "", at + size

    return read


def _set(size: int, labels: Sequence[str]) -> Read:
    def read(data: bytes, at: int) -> tuple[Json, int]:
        bits = int.from_bytes(data[at : at + size], "little")
        members = (label for index, label in enumerate(labels) if bits >> index & 1)
        return ",".join(members), at + size

    return read


def _bits(bits: int, size: int) -> Read:
    def read(data: bytes, at: int) -> tuple[Json, int]:
        return f"{int.from_bytes(data[at : at + size], 'big'):0{bits}b}", at + size

    return read


def _decimal(precision: int, scale: int) -> Read:
    whole = precision - scale
    # Groups of nine digits in four bytes; the first of the whole part and the last of the fraction may be shorter.
    groups = [whole % 9, *[9] * (whole // 9), *[9] * (scale // 9), scale % 9]
    size = sum(_DIGIT_BYTES[digits] for digits in groups)

    def read(data: bytes, at: int) -> tuple[Json, int]:
        raw = bytearray(data[at : at + size])
        negative = not raw[0] & 0x80
        raw[0] ^= 0x80
        if negative:
            raw = bytearray(each ^ 0xFF for each in raw)
        text, place = "", 0
        for digits in groups:
            if digits:
                end = place + _DIGIT_BYTES[digits]
                text += f"{int.from_bytes(raw[place:end], 'big'):0{digits}d}"
                place = end
        number = text[:whole].lstrip("0") or "0"
        fraction = f".{text[whole:]}" if scale else ""
        return f"{'-' if negative else ''}{number}{fraction}", at + size

    return read


def _date(data: bytes, at: int) -> tuple[Json, int]:
    packed = int.from_bytes(data[at : at + 3], "little")
    try:
        return dt.date(packed >> 9, packed >> 5 & 15, packed & 31).isoformat(), at + 3
    except ValueError:
        return None, at + 3


def _fraction(data: bytes, at: int, digits: int) -> tuple[int, int]:
    end = at + _FRACTION_BYTES[digits]
    return int.from_bytes(data[at:end], "big") * 10 ** (6 - 2 * (end - at)), end


def _datetime(digits: int) -> Read:
    def read(data: bytes, at: int) -> tuple[Json, int]:
        packed = int.from_bytes(data[at : at + 5], "big") - (1 << 39)
        micros, end = _fraction(data, at + 5, digits)
        year, month = divmod(packed >> 22, 13)
        try:
            value = dt.datetime(  # noqa: DTZ001 - DATETIME has no zone
                year,
                month,
                packed >> 17 & 31,
                packed >> 12 & 31,
                packed >> 6 & 63,
                packed & 63,
                micros,
            )
        except ValueError:
            return None, end
        return render(value), end

    return read


def _timestamp(digits: int) -> Read:
    def read(data: bytes, at: int) -> tuple[Json, int]:
        # Unsigned: MariaDB goes to 2106 since 11.5.
        seconds = int.from_bytes(data[at : at + 4], "big")
        micros, end = _fraction(data, at + 4, digits)
        if not seconds and not micros:
            return None, end  # 0000-00-00 00:00:00
        return f"{render(_EPOCH + dt.timedelta(seconds=seconds, microseconds=micros))}Z", end

    return read


def _time(digits: int) -> Read:
    size = _FRACTION_BYTES[digits]

    def read(data: bytes, at: int) -> tuple[Json, int]:
        end = at + 3 + size
        # Seconds and fraction are one number; a negative one is its complement as a whole.
        packed = int.from_bytes(data[at:end], "big") - (1 << (23 + 8 * size))
        span, negative = abs(packed), packed < 0
        micros = (span & ((1 << 8 * size) - 1)) * 10 ** (6 - 2 * size)
        clock = span >> 8 * size
        value = dt.timedelta(
            hours=clock >> 12 & 1023,
            minutes=clock >> 6 & 63,
            seconds=clock & 63,
            microseconds=micros,
        )
        return render_time(-value if negative else value), end

    return read
