"""The words by which a text is found: the same on every database, which only compares them.

Texts and queries are cut into words here. Letters are compared without case, in their compatibility form (NFKC) and
without the characters that nobody sees. Scripts that put no space between words (Chinese, Japanese, Thai …) are cut
into pairs of neighbours, which overlap; the last character of such a run also stands alone, so that every character
begins a word. Words are written in ASCII, have at least three characters and are no database's stop words, so that no
database's own parser changes them.

A text has its exact words, and after them, if it has accents, points or other forms of letters, all its words once more
without those. So unquoted words are found whatever their accents, quoted ones as they are, and a plain text, as most
are, costs nothing more. Behind them stand numbers: groups of digits written together.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from deskwire_common import texts
from deskwire_common.errors import InvalidArgument

MAX_TERMS: Final = 16
_MIN_PREFIX: Final = 2
MAX_BYTES: Final = 38
"""How many bytes of a word count; longer words are found by their beginning."""

_ASCII: Final = re.compile(r"[a-z0-9]+")
_EXACT: Final = ("ww", "uu")
"""What stands before an exact word in ASCII, and before the hexadecimal form of another one."""
_FOLDED: Final = ("ff", "vv")
_NUMBER: Final = "nn"

BETWEEN_DIGITS: Final = " ()./-"
"""What may stand between the groups of a number, up to three of them in a row."""
_BETWEEN: Final = f"[{re.escape(BETWEEN_DIGITS)}\u2010-\u2015\u2212]{{1,3}}"
_NUMBERS: Final = re.compile(f"(?<![a-z0-9])[0-9]+(?:{_BETWEEN}[0-9]+)+(?![a-z0-9*])")
_MAY_HAVE_NUMBERS: Final = re.compile(f"[0-9]{_BETWEEN}")
_DIGITS: Final = re.compile("[0-9]+")
MIN_DIGITS: Final = 6
_MAX_DIGITS: Final = 20
_MAX_GROUPS: Final = 8
_MAX_NUMBERS: Final = 256
"""Numbers of one text that are found by their groups written together: a table of figures must not grow tenfold."""

_UNSPACED: Final = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese
    "\uac00-\ud7af"  # Korean, whose words have endings
    "]"
)
# Marks of Latin, Greek, Cyrillic, Hebrew and Arabic. Those of Indic scripts and of kana make other letters, and so does
# the breve of й. The last one is the tatweel, which only makes an Arabic word longer.
_FOLDED_MARKS: Final = re.compile(
    "(?<!\u0438)\u0306|[\u0300-\u0305\u0307-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
    "\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed"
    "\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20dc\u20e1\u20e5-\u20f0\ufe20-\ufe2f\u0640]"
)
# Letters that Unicode doesn't take apart; alef, yeh, kaf and teh marbuta of Arabic and Persian.
_FOLDED_LETTERS: Final = str.maketrans(
    {
        "ø": "o", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "ł": "l", "ŧ": "t", "æ": "ae", "œ": "oe", "þ": "th",
        "\u0671": "\u0627", "\u0649": "\u064a", "\u06cc": "\u064a", "\u06a9": "\u0643", "\u0629": "\u0647",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words that must follow each other; `prefix`: there is one word, and the text's word may be longer."""

    words: tuple[str, ...]
    prefix: bool = False


Term: TypeAlias = tuple[Phrase, ...]
"""Phrases of which at least one must be found."""


def of_text(text: str) -> list[str]:
    """Return the words of a text, in order."""
    if text.isascii():
        # The same as _cut gives, but faster; most texts are ASCII.
        lower = text.lower()
        return ["ww" + word[:MAX_BYTES] for word in _ASCII.findall(lower)] + _numbers(lower)
    exact = _exact(text)
    folded = _folded(exact)
    found = _cut(exact, _EXACT)
    if folded != exact:
        found += _cut(folded, _FOLDED)
    return found + _numbers(folded)


def of_query(query: str) -> tuple[Term, ...]:
    """Return the terms that must all be found: words, "words in quotes" next to each other, and beginnings*.

    None when the query has no word, only emoji or punctuation: then nothing is found. Raises InvalidArgument
    (INVALID_FIELD).
    """
    texts.check_seen(query, "query")
    parts = query.split('"')
    if len(parts) % 2 == 0:
        raise _wrong("a quotation mark is missing")
    terms: dict[Term, None] = {}
    for number, part in enumerate(parts):
        quoted = number % 2 == 1
        for term in _quoted(_exact(part)) if quoted else _unquoted(_folded(_exact(part))):
            terms[term] = None
    if len(terms) > MAX_TERMS:
        raise _wrong(f"it has more than {MAX_TERMS} words")
    return tuple(terms)


def _quoted(part: str) -> Iterator[Term]:
    for phrase in _phrases(part, _EXACT):
        yield (phrase,)


def _unquoted(part: str) -> Iterator[Term]:
    end = 0
    for found in _NUMBERS.finditer(part):
        joined = "".join(_DIGITS.findall(found[0]))
        if MIN_DIGITS <= len(joined) <= _MAX_DIGITS:
            yield from _words_of(part[end : found.start()])
            # Each group may be there by itself, or all of them as one number.
            yield from (
                (*groups, *_number(joined)) for groups in _words_of(found[0], numbers=False)
            )
            end = found.end()
    yield from _words_of(part[end:])


def _words_of(part: str, *, numbers: bool = True) -> Iterator[Term]:
    for chunk in part.split():
        star = chunk.endswith("*")
        exact = list(_phrases(chunk, _EXACT, star=star))
        folded = list(_phrases(chunk, _FOLDED, star=star))
        for ours, theirs in zip(exact, folded, strict=True):
            digits = ours.words[0].removeprefix(_EXACT[0])
            is_number = numbers and len(ours.words) == 1 and digits.isdigit()
            if is_number and (ours.prefix or len(digits) >= MIN_DIGITS):
                yield ours, theirs, Phrase((_NUMBER + digits,), prefix=ours.prefix)
            else:
                yield ours, theirs


def _number(digits: str) -> Term:
    return tuple(Phrase((mark + digits,)) for mark in (_EXACT[0], _FOLDED[0], _NUMBER))


def _phrases(chunk: str, marks: tuple[str, str], *, star: bool = False) -> Iterator[Phrase]:
    runs = list(_runs(chunk))
    if not runs:
        return
    words: list[str] = []
    for run, unspaced in runs[:-1]:
        words += [run[place : place + 2] for place in range(len(run))] if unspaced else [run]
    last, unspaced = runs[-1]
    if unspaced and len(last) > 1:
        # The word in the text may be longer.
        words += [last[place : place + 2] for place in range(len(last) - 1)]
        yield _phrase(words, marks)
        return
    if not unspaced and not star:
        yield _phrase([*words, last], marks)
        return
    if star and not unspaced and len(last) < _MIN_PREFIX:
        raise _wrong(f"a beginning has at least {_MIN_PREFIX} characters")
    if words:
        yield _phrase(words, marks)
    yield Phrase((_coded(last, marks),), prefix=True)


def _phrase(words: list[str], marks: tuple[str, str]) -> Phrase:
    return Phrase(tuple(_coded(word, marks) for word in words))


def _exact(text: str) -> str:
    """Return a text in the form in which quoted words are compared."""
    seen = texts.without_ignorable(text)
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", seen).casefold())


def _folded(exact: str) -> str:
    """Return a text in the form in which other words are compared: without accents, points and forms of letters."""
    if exact.isascii():
        return exact
    bare = _FOLDED_MARKS.sub("", unicodedata.normalize("NFD", exact))
    folded = unicodedata.normalize("NFC", bare).translate(_FOLDED_LETTERS)
    return texts.with_ascii_digits(folded)


def _cut(text: str, marks: tuple[str, str]) -> list[str]:
    found: list[str] = []
    for run, unspaced in _runs(text):
        if unspaced:
            found += [_coded(run[place : place + 2], marks) for place in range(len(run))]
        else:
            found.append(_coded(run, marks))
    return found


def _numbers(text: str) -> list[str]:
    """Return numbers that a text has in groups of digits, any neighbours of them written together."""
    found: dict[str, None] = {}
    if not _MAY_HAVE_NUMBERS.search(text):
        return []
    for match in _NUMBERS.finditer(text):
        groups = _DIGITS.findall(match[0])
        for first in range(len(groups) - 1):
            joined = groups[first]
            for group in groups[first + 1 : first + _MAX_GROUPS]:
                joined += group
                if len(joined) > _MAX_DIGITS:
                    break
                if len(joined) >= MIN_DIGITS:
                    found[_NUMBER + joined] = None
            if len(found) >= _MAX_NUMBERS:
                return list(found)[:_MAX_NUMBERS]
    return list(found)


_BORDER, _SPACED, _NOT_SPACED, _MARK = range(4)


class _Kinds(dict[str, int]):
    """What a character is to words, remembered for those of the first plane."""

    def __missing__(self, character: str) -> int:
        category = unicodedata.category(character)
        if _UNSPACED.match(character):
            kind = _NOT_SPACED
        elif character.isalnum():
            kind = _SPACED
        else:
            # An enclosing mark, as of a keycap, makes a sign of a letter, and belongs to no word.
            kind = _MARK if category in {"Mn", "Mc"} else _BORDER
        if character <= "\uffff":
            self[character] = kind
        return kind


_KINDS: Final = _Kinds()


def _runs(text: str) -> Iterator[tuple[str, bool]]:
    """Yield runs of characters that belong together, and whether their script has no spaces."""
    begin, of = 0, _BORDER
    for place, kind in enumerate(map(_KINDS.__getitem__, text)):
        if kind == of or (kind == _MARK and of != _BORDER):
            continue  # a mark belongs to the letter before it
        if of != _BORDER:
            yield text[begin:place], of == _NOT_SPACED
        begin, of = place, _BORDER if kind == _MARK else kind
    if of != _BORDER:
        yield text[begin:], of == _NOT_SPACED


def _coded(word: str, marks: tuple[str, str]) -> str:
    if word.isascii():
        return marks[0] + word[:MAX_BYTES]
    cut = word.encode()[:MAX_BYTES].decode(errors="ignore")
    return marks[1] + cut.encode().hex()


def _wrong(why: str) -> InvalidArgument:
    return InvalidArgument(why, field="query")
