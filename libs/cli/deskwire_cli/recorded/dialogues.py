"""Dialogues from JSON lines `{"id": …, "turns": [{"from": …, "text": …}]}`, and what of them is left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final

from deskwire_cli.machine.problem import Problem
from deskwire_cli.recorded.lines import Line, Seen, lines_of
from deskwire_cli.recorded.oddities import Balance, Kind, Place, shown
from deskwire_common import texts
from deskwire_wire.limits import MAX_TEXT

ID_CHARACTERS: Final = 128
"""The most characters of a dialogue's id."""


class Speaker(Enum):
    """Who speaks: the value is its name in files."""

    CUSTOMER = "customer"
    AGENT = "agent"
    BOT = "bot"
    NOTE = "note"
    SYSTEM = "system"


class LeftOut(Exception):
    """A dialogue is left out; `turn` is its turn from 1, 0: the dialogue itself."""

    def __init__(self, kind: Kind, turn: int = 0) -> None:
        super().__init__(kind.word)
        self.kind = kind
        self.turn = turn


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: its number in the file (from 1), who speaks, what they say, and its JSON object as it came."""

    number: int
    speaker: Speaker
    text: str
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def visitor(self) -> bool:
        """Whether the visitor speaks."""
        return self.speaker is Speaker.CUSTOMER


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What of a dialogue isn't left out, the line that it is on, and its JSON object as it came."""

    line: int
    dialogue_id: str
    turns: tuple[Turn, ...]
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place(self.line, shown(self.dialogue_id))


@dataclass(frozen=True, slots=True)
class Rules:
    """How dialogues are read: who is who, whether the customer must begin, and a further check.

    The check may raise LeftOut, and returns the fields that are left out: their kind, and the turn or 0.
    """

    speakers: Mapping[str, Speaker]
    customer_begins: bool
    check: Callable[[Dialogue], list[tuple[Kind, int]]] = lambda _dialogue: []


def speakers(
    known: Mapping[str, Speaker], allowed: Mapping[str, Speaker], mapped: list[str]
) -> dict[str, Speaker]:
    """Return who is who: `known`, and what `--as NAME=SPEAKER` says. Raises ValueError for another form."""
    found = dict(known)
    for each in mapped:
        name, equals, target = each.rpartition("=")
        if not equals or not name or target not in allowed:
            raise ValueError(f"{each!r} isn't NAME={'|'.join(allowed)}")
        found[name] = allowed[target]
    return found


def dialogues_of(
    path: Path, rules: Rules, balance: Balance, seen: Seen = lambda _bytes: None
) -> Iterator[Dialogue]:
    """Yield what isn't left out, and count everything into `balance`. Reads on as it is asked; blocks.

    The same file and rules always give the same dialogues. Of several with one id the first that isn't left out for
    another reason is taken. Raises Problem for a file that can't be read.
    """
    taken: set[bytes] = set()
    for line in lines_of(path, seen):
        balance.dialogues += 1
        found = _Reading(line, rules, balance, taken).dialogue()
        if found is not None:
            balance.dialogues_played += 1
            balance.played += len(found.turns)
            yield found


def survey(path: Path, rules: Rules, seen: Seen = lambda _bytes: None) -> Balance:
    """Read a whole file and return its balance. Raises Problem for one that can't be read or holds nothing."""
    balance = Balance()
    for _ in dialogues_of(path, rules, balance, seen):
        pass
    if not balance.dialogues:
        raise Problem(f"{path} holds no dialogue")
    return balance


class _Reading:
    """The reading of one line."""

    def __init__(self, line: Line, rules: Rules, balance: Balance, taken: set[bytes]) -> None:
        self._line = line
        self._rules = rules
        self._balance = balance
        self._taken = taken
        self._id = ""
        self._count = 0
        self._left: list[tuple[Kind, int]] = []

    def dialogue(self) -> Dialogue | None:
        """Return the dialogue; None when it is left out."""
        try:
            found = self._read()
            fields = self._rules.check(found)
            key = hashlib.blake2b(found.dialogue_id.encode(), digest_size=16).digest()
            if key in self._taken:
                raise LeftOut(Kind.ID_TWICE)
            self._taken.add(key)
        except LeftOut as out:
            place = Place(self._line.number, self._id, out.turn)
            self._balance.turns += self._count
            self._balance.leave_dialogue(out.kind, place, self._count)
            return None
        self._balance.turns += self._count
        for kind, turn in self._left:
            self._balance.leave_turn(kind, Place(self._line.number, self._id, turn))
        for kind, turn in fields:
            self._balance.leave_field(kind, Place(self._line.number, self._id, turn))
        return found

    def _read(self) -> Dialogue:
        document = _document(self._line)
        self._id = shown(document.get("id"))
        turns = document.get("turns")
        if isinstance(turns, list):
            self._count = len(turns)
        dialogue_id = _id(document)
        if not isinstance(turns, list) or not turns:
            raise LeftOut(Kind.NO_TURNS)
        read = [self._turn(number, each) for number, each in enumerate(turns, 1)]
        kept = [each for each in read if each is not None]
        if self._rules.customer_begins:
            kept = self._from_customer(kept)
        if not kept:
            raise LeftOut(Kind.NOTHING_LEFT)
        return Dialogue(self._line.number, dialogue_id, tuple(kept), document)

    def _turn(self, number: int, raw: Any) -> Turn | None:
        if not isinstance(raw, dict):
            raise LeftOut(Kind.BAD_TURN, number)
        name = raw.get("from")
        speaker = self._rules.speakers.get(name) if isinstance(name, str) else None
        if speaker is None:
            raise LeftOut(Kind.UNKNOWN_SPEAKER, number)
        text = raw.get("text")
        kind = Kind.SYSTEM if speaker is Speaker.SYSTEM else _oddity(raw)
        if kind is Kind.TOO_LONG:
            raise LeftOut(kind, number)
        if kind is not None:
            self._left.append((kind, number))
            return None
        return Turn(number, speaker, text, raw) if isinstance(text, str) else None

    def _from_customer(self, turns: list[Turn]) -> list[Turn]:
        first = next((place for place, each in enumerate(turns) if each.visitor), len(turns))
        self._left += [(Kind.BEFORE_CUSTOMER, each.number) for each in turns[:first]]
        return turns[first:]


class _KeyTwice(ValueError):
    """An object of a document has a key twice."""


def _document(line: Line) -> dict[str, Any]:
    if line.data is None:
        raise LeftOut(Kind.LONG_LINE)
    try:
        found = json.loads(line.data.decode(), object_pairs_hook=_object)
    except UnicodeDecodeError:
        raise LeftOut(Kind.NOT_UTF8) from None
    except _KeyTwice:
        raise LeftOut(Kind.KEY_TWICE) from None
    except (ValueError, RecursionError):
        raise LeftOut(Kind.CUT_LINE) from None
    if not isinstance(found, dict):
        raise LeftOut(Kind.NOT_AN_OBJECT)
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _KeyTwice
    return found


def _id(document: Mapping[str, Any]) -> str:
    raw = document.get("id")
    if isinstance(raw, bool) or not isinstance(raw, str | int):
        raise LeftOut(Kind.BAD_ID)
    text = str(raw)
    if not (texts.has_seen(text) and texts.is_line(text) and len(text) <= ID_CHARACTERS):
        raise LeftOut(Kind.BAD_ID)
    return text


def _oddity(raw: Mapping[str, Any]) -> Kind | None:
    if "text" not in raw:
        return Kind.NO_TEXT
    text = raw["text"]
    if not isinstance(text, str):
        return Kind.NULL if text is None else Kind.NOT_TEXT
    if _has_lone_surrogate(text):
        return Kind.LONE_SURROGATE
    if not texts.has_seen(text):
        return Kind.EMPTY if not text else Kind.BLANK if text.isspace() else Kind.INVISIBLE
    return Kind.TOO_LONG if len(text) > MAX_TEXT else None


def _has_lone_surrogate(text: str) -> bool:
    """Whether a text holds half a character, which has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
