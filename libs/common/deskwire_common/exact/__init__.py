"""JSON that loses no digit: as text, as plain Python values, and as `deskwire.common.v1.JsonValue`.

Plain values are None, bool, int, float, Decimal, str, list and dict. A number's type follows from the number: a
whole one is an int, one that a float holds exactly as it is written is a float, every other one a Decimal.
"""

from __future__ import annotations

from deskwire_common.exact.messages import fill, to_plain
from deskwire_common.exact.text import dumps, loads
from deskwire_common.exact.values import MAX_DEPTH, Plain, json_object, json_value

__all__ = ["MAX_DEPTH", "Plain", "dumps", "fill", "json_object", "json_value", "loads", "to_plain"]
