"""Which values of an event go where: paths such as `data.customer.email`, or a constant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from deskwire_adapter.model import Incoming

MAPPING_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "minProperties": 1,
    "maxProperties": 200,
    "additionalProperties": {
        "anyOf": [
            {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z0-9_:-]+)*$"},
            {
                "type": "object",
                "properties": {"value": {}},
                "required": ["value"],
                "additionalProperties": False,
            },
        ]
    },
}
"""Field of the system → path in the event's JSON form, or `{"value": …}`."""


class Missing:
    """There is no such value in the event."""

    MISSING: ClassVar[Missing]


Missing.MISSING = Missing()


def value_of(event: Incoming, path: str) -> Any:
    """The value at a path of the JSON form; Missing.MISSING where there is none."""
    found: Any = event.document
    for name in path.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return Missing.MISSING
        found = found[name]
    return found


def mapped(event: Incoming, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an event by the system's fields; fields whose value is missing are left out."""
    values = {
        field: value_of(event, where) if isinstance(where, str) else where["value"]
        for field, where in mapping.items()
    }
    return {field: value for field, value in values.items() if value is not Missing.MISSING}
