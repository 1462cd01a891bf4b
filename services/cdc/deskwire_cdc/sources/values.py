"""How column values are written in events: JSON-safe, without loss.

| SQL | JSON |
|---|---|
| NULL | null |
| integers, YEAR | a number of up to 64 bits, unsigned too, with all its digits |
| FLOAT, DOUBLE, REAL | a number, FLOAT by its shortest form; infinities as "Infinity", "-Infinity" |
| DECIMAL | a string with all its digits: "-12.500" |
| CHAR, VARCHAR, TEXT, ENUM, JSON | a string |
| SET | a string, members in the column's order: "x,z" |
| BINARY, VARBINARY, BLOB | a string, Base64; BINARY(n) with its padding |
| BIT(n) | a string of 0 and 1 |
| DATE | "2026-11-23" |
| DATETIME | "2026-11-23T17:14:31.123000", the column's fraction as six digits, without a zone |
| TIMESTAMP | the same in UTC, with "Z" |
| TIME | "-10:11:12.500000", hours up to 838 |

Dates that are no dates (0000-00-00, 2020-00-31) are null: no JSON reader could take them.
SQLite's values are by what is
stored, not by the column's declared type.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import math
import struct

from deskwire_cdc.domain.changes import Json


def render(value: object) -> Json:  # noqa: PLR0911 - one line per type of the table
    """Return a driver's value as JSON. Raises TypeError for a type that isn't in the table above."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return render_float(value)
        case decimal.Decimal():
            return format(value, "f")
        case bytes() | bytearray():
            return base64.b64encode(value).decode()
        case dt.datetime():
            return value.isoformat(timespec="microseconds")
        case dt.date():
            return value.isoformat()
        case dt.timedelta():
            return render_time(value)
        case _:
            raise TypeError(f"no JSON form for {type(value).__name__}")


def render_float(value: float) -> Json:
    """Return a number, or the name of one that JSON doesn't have."""
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def shortest_single(value: float) -> float:
    """Return the shortest decimal that is the same 4-byte float: 1.1 for 1.100000023841858."""
    if not math.isfinite(value):
        return value
    for digits in range(6, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value


def render_time(value: dt.timedelta) -> str:
    """Return a MySQL TIME, a span of up to ±838 hours, as text."""
    micros = round(value / dt.timedelta(microseconds=1))
    sign = "-" if micros < 0 else ""
    seconds, fraction = divmod(abs(micros), 1_000_000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    return f"{sign}{hour:02d}:{minute:02d}:{second:02d}.{fraction:06d}"
