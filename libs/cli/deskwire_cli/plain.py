"""Others' text for a terminal: what would run commands in it, forge a line or reverse the reading order is escaped."""

from __future__ import annotations

import json
import unicodedata
from typing import Any, Final

_ESCAPED: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Control characters, line breaks too; halves of surrogate pairs, which can't be printed; separators of lines."""
_BIDI: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""What has the Unicode property Bidi_Control."""


def plain(text: object) -> str:
    r"""Return a text as one line that a terminal only shows: `\u001b` for an escape character, `\u000a` for a new line.

    Everything else stays as it is: the joiners of scripts and emoji, all kinds of blanks, backslashes.
    """
    return "".join(_escaped(character) for character in str(text))


def plain_json(value: Any, *, indent: int | None = None) -> str:
    """Return JSON in UTF-8 that a terminal only shows; it has the same value as unescaped."""
    lines = json.dumps(value, ensure_ascii=False, indent=indent).split("\n")
    return "\n".join(map(plain, lines))


def _escaped(character: str) -> str:
    if character in _BIDI or unicodedata.category(character) in _ESCAPED:
        return f"\\u{ord(character):04x}"
    return character
