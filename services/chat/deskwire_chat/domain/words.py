"""The words by which a text is found: the same on every database, which only compares them.

Texts and queries are cut into words here. Letters are compared without case and in their compatibility form (NFKC).
Scripts that put no space between words (Chinese, Japanese, Thai …) are cut into pairs of neighbours, which overlap; the
last character of such a run also stands alone, so that every character begins a word. Words are written in ASCII, have
at least three characters and are no database's stop words, so that no database's own parser changes them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from deskwire_common.errors import InvalidArgument

MAX_TERMS: Final = 16
_MIN_PREFIX: Final = 2
MAX_BYTES: Final = 38
"""How many bytes of a word count; longer words are found by their beginning."""
_ASCII: Final = re.compile(r"[a-z0-9]+")
_CHUNKS: Final = re.compile(r'"([^"]*)"|([^\s"]+)')
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


@dataclass(frozen=True, slots=True)
class Term:
    """Words that must follow each other; `prefix`: there is one word, and the text's word may be longer."""

    words: tuple[str, ...]
    prefix: bool = False


def of_text(text: str) -> list[str]:
    """Return the words of a text, in order."""
    if text.isascii():
        # The same as _coded gives, but faster; most texts are ASCII.
        return ["ww" + word[:MAX_BYTES] for word in _ASCII.findall(text.lower())]
    found: list[str] = []
    for run, unspaced in _runs(text):
        if unspaced:
            found += [_coded(run[place : place + 2]) for place in range(len(run))]
        else:
            found.append(_coded(run))
    return found


def of_query(query: str) -> tuple[Term, ...]:
    """Return the terms that must all be found: words, "words in quotes" next to each other, and beginnings*.

    Raises InvalidArgument (INVALID_FIELD).
    """
    if query.count('"') % 2:
        raise _wrong("a quotation mark is missing")
    terms: dict[Term, None] = {}
    for match in _CHUNKS.finditer(query):
        quoted, plain = match.groups()
        for term in _terms(quoted or plain or "", star=quoted is None and plain.endswith("*")):
            terms[term] = None
    if not terms:
        raise _wrong("there is no word in it")
    if len(terms) > MAX_TERMS:
        raise _wrong(f"it has more than {MAX_TERMS} words")
    return tuple(terms)


def _terms(chunk: str, *, star: bool) -> Iterator[Term]:
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
        yield _term(words)
        return
    if not unspaced and not star:
        yield _term([*words, last])
        return
    if star and not unspaced and len(last) < _MIN_PREFIX:
        raise _wrong(f"a beginning has at least {_MIN_PREFIX} characters")
    if words:
        yield _term(words)
    yield Term((_coded(last),), prefix=True)


def _term(words: list[str]) -> Term:
    return Term(tuple(_coded(word) for word in words))


def _runs(text: str) -> Iterator[tuple[str, bool]]:
    """Yield runs of characters that belong together, and whether their script has no spaces."""
    run: list[str] = []
    unspaced = False
    for character in unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()):
        if _UNSPACED.match(character):
            kind = True
        elif character.isalnum() or unicodedata.category(character).startswith("M"):
            # A mark belongs to its base character.
            kind = bool(run) and unspaced and not character.isalnum()
        else:
            if run:
                yield "".join(run), unspaced
                run = []
            continue
        if run and kind != unspaced:
            yield "".join(run), unspaced
            run = []
        run.append(character)
        unspaced = kind
    if run:
        yield "".join(run), unspaced


def _coded(word: str) -> str:
    if word.isascii():
        return "ww" + word[:MAX_BYTES]
    cut = word.encode()[:MAX_BYTES].decode(errors="ignore")
    return "uu" + cut.encode().hex()


def _wrong(why: str) -> InvalidArgument:
    return InvalidArgument(why, field="query")
