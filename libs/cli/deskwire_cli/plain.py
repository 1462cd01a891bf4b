"""Others' text for a terminal: what would run commands in it, forge a line or reverse the reading order is escaped."""

from __future__ import annotations

import json
from typing import Any

from deskwire_common import texts


def plain(text: object) -> str:
    """Return a text as one line that a terminal only shows; see `texts.escaped`."""
    return texts.escaped(str(text))


def plain_json(value: Any, *, indent: int | None = None) -> str:
    """Return JSON in UTF-8 that a terminal only shows; it has the same value as unescaped."""
    lines = json.dumps(value, ensure_ascii=False, indent=indent).split("\n")
    return "\n".join(map(plain, lines))
