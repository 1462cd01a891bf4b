"""What a name, a line and a text of others may hold: one rule for all services, in terms of Unicode's own properties.

A line (a name, a subject, a file's name) has no control character, no break of a line or a paragraph, nothing that
turns the reading order around, and no code point that is never a character. Everything else is fine, also what
`str.isprintable` refuses: blanks of every script, the joiners of Persian, Malayalam and emoji, and characters that are
newer than this interpreter's Unicode.

The contract states the same two rules, in `deskwire/common/v1/text_rules.proto`; tests/common compares them with these.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from deskwire_common.errors import InvalidArgument

LINE_RULE: Final = (
    "must be one line, without control characters, line breaks and characters that turn the "
    "reading order around (U+202A to U+202E, U+2066 to U+2069)"
)
SEEN_RULE: Final = "must have a character that can be seen"

BIDI_MARKS: Final = "\u061c\u200e\u200f"
"""Marks that only give their neighbours a direction: harmless."""
BIDI_EXPLICIT: Final = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Embeddings, overrides and isolates: they can show a text in another order than it has."""

_NEVER_CHARACTERS: Final = "\ufdd0-\ufdef" + "".join(
    f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17)
)
_CONTROL: Final = "\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
_NO_LINE: Final = re.compile(f"[{_CONTROL}{BIDI_EXPLICIT}{_NEVER_CHARACTERS}]")
_UNSAFE: Final = re.compile(f"[{_CONTROL}{BIDI_EXPLICIT}{BIDI_MARKS}]")

_IGNORABLE: Final = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
"""Default_Ignorable_Code_Point (DerivedCoreProperties.txt): what is not shown even by those who don't know it."""
_IGNORABLES: Final = re.compile(f"[{_IGNORABLE}]+")
_BLANKS: Final = "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
"""Category Zs but for U+0020."""
_SAME_BLANKS: Final = str.maketrans(dict.fromkeys(_BLANKS, " "))
_ENDS: Final = f" {_BLANKS}\u200e\u200f\ufeff"
_WRAPPING: Final = f"{_ENDS}{BIDI_MARKS}{BIDI_EXPLICIT}"
_FOREIGN_DIGIT: Final = re.compile(r"[^\D0-9]")
_BRAILLE_BLANK: Final = "\u2800"
_FILLERS: Final = "\u115f\u1160\u3164\uffa0"
"""Letters without a form, for Hangul syllables that lack a part."""


def is_line(text: str) -> bool:
    """Whether a text has no character that a line can't have; an empty one has none."""
    # The first half is for the ids of messages, one of the hottest places: 0.1 µs.
    return (text.isascii() and text.isprintable()) or _NO_LINE.search(text) is None


def trimmed(text: str) -> str:
    """Return a text without blanks of any script, LRM, RLM and byte order marks at its ends."""
    return text.strip(_ENDS)


def unwrapped(text: str) -> str:
    """Return a text, trimmed, without the marks of direction that Windows and macOS wrap a phone number in, too."""
    return text.strip(_WRAPPING)


def line_or_none(text: str) -> str | None:
    """Return a text as it is kept as a name: trimmed; None when it can't be a line, or nothing of it can be seen.

    An empty text stays empty.
    """
    kept = trimmed(text)
    return kept if is_line(kept) and (not text or has_seen(kept)) else None


def line(text: str, field: str) -> str:
    """Return a text as it is kept as a name; what `line_or_none` has no line for raises InvalidArgument for `field`."""
    kept = trimmed(text)
    if not is_line(kept):
        raise InvalidArgument(f"{field} {LINE_RULE}", field=field)
    if text:
        check_seen(kept, field)
    return kept


def has_seen(text: str) -> bool:
    """Whether something of a text can be seen: more than blanks, controls, formats and fillers."""
    # Nearly all texts begin with a character that can be seen: the usual case costs 0.1 to 0.2 µs.
    first = text[:1]
    if "!" <= first <= "~" or (first.isalnum() and first not in _FILLERS):
        return True
    return any(not _is_unseen(character) for character in _IGNORABLES.sub("", text))


def check_seen(text: str, field: str) -> None:
    """Raise InvalidArgument (INVALID_FIELD) for `field` when nothing of a text can be seen."""
    if not has_seen(text):
        raise InvalidArgument(f"{field} {SEEN_RULE}", field=field)


def same_blanks(text: str) -> str:
    """Return a text for comparing: every blank of every script is U+0020."""
    return text if text.isascii() else text.translate(_SAME_BLANKS)


def without_ignorable(text: str) -> str:
    """Return a text without the characters that nobody shows: soft hyphens, joiners, variation selectors …"""
    return text if text.isascii() else _IGNORABLES.sub("", text)


def with_ascii_digits(text: str) -> str:
    """Return a text with 0 to 9 for the decimal digits of every script."""
    if text.isascii():
        return text
    return _FOREIGN_DIGIT.sub(lambda found: str(unicodedata.decimal(found[0])), text)


def in_one_line(text: str) -> str:
    """Return a text of others for our tables and logs: a blank stands for every character that no line has."""
    return _NO_LINE.sub(" ", text)


def escaped(text: str) -> str:
    r"""Return a text as one line that a terminal only shows: `\u001b` for an escape character, `\u000a` for a new line.

    Direction marks are escaped, too. Everything else stays as it is, backslashes as well.
    """
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _is_unseen(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] == "Z" or category in {"Cc", "Cf", "Cs"} or character == _BRAILLE_BLANK
