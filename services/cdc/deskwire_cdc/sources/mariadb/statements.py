"""What the statements in a binlog say about captured tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

# What /*! … */ and /*M! … */ hold is run; other comments aren't.
_TOKEN: Final = re.compile(
    r"""(?P<skip>\s+|/\*(?!M?!).*?\*/|--(?=\s|$)[^\n]*|\#[^\n]*|/\*M?!\d*|\*/)
    |(?P<quoted>`(?:[^`]|``)*`)|(?P<text>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*")
    |(?P<word>[\w$]+)|(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_FILLERS: Final = frozenset(
    {
        "LOW_PRIORITY", "HIGH_PRIORITY", "DELAYED", "QUICK", "IGNORE", "INTO", "FROM", "TABLE", "IF", "NOT",
        "EXISTS", "ONLINE", "TEMPORARY", "OR", "REPLACE",
    }
)  # fmt: skip
_MOST_TOKENS: Final = 2000
Captured = Callable[[Sequence[tuple[str, str]]], str]
"""The first captured table among names with their schemas, or ""."""


@dataclass(frozen=True, slots=True)
class Token:
    """A word in capitals, a quoted name as it is, or a sign."""

    text: str
    is_name: bool

    def is_(self, *words: str) -> bool:
        """Whether it is one of these words, and no quoted name."""
        return not self.is_name and self.text.upper() in words


@dataclass(frozen=True, slots=True)
class Effect:
    """What a statement does to captured tables."""

    writes: str = ""
    """A captured table whose rows it wrote, without saying which."""
    elsewhere: str = ""
    """A table that isn't captured whose rows it wrote so: a trigger of it may have written to a captured one."""
    ends: str = ""
    """A captured table whose rows went, or that is another one now."""
    verb: str = ""
    """What ended it: `TRUNCATE`."""
    alters: bool = False
    """A captured table has another definition now."""


def tokens(statement: str) -> list[Token]:
    """Return a statement's first tokens, without comments and texts."""
    found = []
    for match in _TOKEN.finditer(statement):
        if match.lastgroup == "quoted":
            found.append(Token(match.group()[1:-1].replace("``", "`"), is_name=True))
        elif match.lastgroup in {"word", "other"}:
            found.append(Token(match.group(), is_name=False))
        if len(found) == _MOST_TOKENS:
            break
    return found


def effect(statement: str, schema: str, database: str, tables: Collection[str]) -> Effect:
    """Return what a statement, run in `schema`, does to the captured tables of `database`."""
    words = tokens(statement)
    if not words:
        return Effect()
    if words[0].is_("INSERT", "REPLACE", "UPDATE", "DELETE", "LOAD", "WITH"):
        return _writing(words, schema, database, tables)

    def captured(names: Sequence[tuple[str, str]]) -> str:
        return next((n for s, n in names if (s or schema) == database and n in tables), "")

    if words[0].is_("DROP") and any(each.is_("DATABASE", "SCHEMA") for each in words[1:2]):
        gone = [name for _, name in _names(words[2:])]
        return Effect(ends=min(tables) if database in gone else "", verb="DROP DATABASE")
    return _defining(words, captured)


def _defining(words: list[Token], captured: Captured) -> Effect:
    head = {each.text.upper() for each in words[1:5] if not each.is_name}
    match words[0].text.upper():
        case "TRUNCATE":
            return Effect(ends=captured(_names(words[1:])), verb="TRUNCATE")
        case "DROP" if "TABLE" in head:
            return Effect(ends=captured(_names(words[2:])), verb="DROP TABLE")
        case "RENAME":
            return Effect(ends=captured(_names(words[1:])), verb="RENAME TABLE")
        case "CREATE" if "TABLE" in head and "TEMPORARY" not in head:
            table = captured(_names(words[1:])[:1])
            ends = table if "REPLACE" in head else ""
            return Effect(ends=ends, verb="CREATE OR REPLACE TABLE", alters=bool(table))
        case "ALTER" if "TABLE" in head:
            return _altering(words, captured)
        case _:
            return Effect()


def _altering(words: list[Token], captured: Captured) -> Effect:
    start = next(index for index, each in enumerate(words) if each.is_("TABLE")) + 1
    table = captured(_names(words[start:])[:1])
    for index, each in enumerate(words[start:-1], start=start):
        following = words[index + 1]
        if each.is_("RENAME") and not following.is_("COLUMN", "INDEX", "KEY"):
            rest = [token for token in words[index + 1 :] if not token.is_("TO", "AS")]
            return Effect(ends=table or captured(_names(rest)[:1]), verb="ALTER TABLE … RENAME")
        if table and each.is_("TRUNCATE", "DROP", "EXCHANGE") and following.is_("PARTITION"):
            return Effect(ends=table, verb=f"ALTER TABLE … {each.text.upper()} PARTITION")
    return Effect(alters=bool(table))


def _writing(words: list[Token], schema: str, database: str, tables: Collection[str]) -> Effect:
    """One whose target can't be told is taken as writing to each captured table that it names."""
    targets: list[tuple[str, str]] = []
    if words[0].is_("LOAD"):
        into = next((i for i, each in enumerate(words) if each.is_("INTO")), -1)
        targets = _names(words[into + 1 :])[:1] if into >= 0 else []
    elif words[0].is_("INSERT", "REPLACE"):
        targets = _names(words[1:])[:1]
    elif words[0].is_("DELETE", "UPDATE"):
        end = next((i for i, each in enumerate(words) if each.is_("WHERE", "SET")), len(words))
        joined = any(each.is_("JOIN", "USING") or each.text == "," for each in words[1:end])
        targets = [] if joined else _names(words[1:end])[:1]
    if not targets:
        named = next((each.text for each in words if each.text in tables), "")
        here = schema == database or any(each.text == database for each in words)
        return Effect(writes=named if here else "")
    space, name = targets[0]
    if (space or schema) != database:
        return Effect()
    return Effect(writes=name) if name in tables else Effect(elsewhere=name)


def _names(words: Sequence[Token]) -> list[tuple[str, str]]:
    """Return the names `a` and `b.a` in order, each with its schema or ""."""
    found: list[tuple[str, str]] = []
    index = 0
    while index < len(words):
        each = words[index]
        if not each.is_name and (each.is_(*_FILLERS) or not re.fullmatch(r"[\w$]+", each.text)):
            index += 1
            continue
        if index + 2 < len(words) and words[index + 1].text == ".":
            found.append((each.text, words[index + 2].text))
            index += 3
        else:
            found.append(("", each.text))
            index += 1
    return found
