"""Oddities: what is wrong in recorded dialogues, by kind and with places, and the balance of turns; never a text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

PLACES: Final = 5
"""How many places of a kind are reported."""
ID_SHOWN: Final = 64
"""How many characters of a dialogue's id are reported."""


class Kind(Enum):
    """A kind of oddity, with its name in reports and what it means.

    Where it is safe only the turn is left out, as what was said before and after it stays what it was. Else the whole
    dialogue is.
    """

    # A turn is left out.
    EMPTY = "empty", "a text without a character"
    BLANK = "blank", "a text of blanks only"
    INVISIBLE = "invisible", "a text without a visible character"
    NULL = "null", "a text that is null"
    NO_TEXT = "no_text", "a turn without a text"
    NOT_TEXT = "not_text", "a text that is a number, a list or the like"
    LONE_SURROGATE = "lone_surrogate", "half a character (a lone surrogate), which can't be sent"
    SYSTEM = "system", "a turn of the system, which nobody said"
    BEFORE_CUSTOMER = (
        "before_customer",
        "a turn before the customer's first, which opens a conversation",
    )
    # A dialogue is left out.
    CUT_LINE = "cut_line", "a line that is no JSON: cut off or damaged"
    NOT_UTF8 = "not_utf8", "a line that isn't UTF-8"
    LONG_LINE = "long_line", "a line that is too long to be read"
    NOT_AN_OBJECT = "not_an_object", "a line that is no JSON object"
    KEY_TWICE = "key_twice", "an object that has a key twice"
    BAD_ID = "bad_id", "a dialogue without a usable id"
    ID_TWICE = "id_twice", "an id that an earlier dialogue has"
    NO_TURNS = "no_turns", "a dialogue without turns"
    BAD_TURN = "bad_turn", "a turn that is no JSON object"
    UNKNOWN_SPEAKER = "unknown_speaker", "a turn of an unknown speaker; name them with --as"
    TOO_LONG = "too_long", "a text that is longer than a message may be"
    NOTHING_LEFT = "nothing_left", "a dialogue of which no turn is left"
    # A dialogue is left out of an import.
    BAD_TIME = "bad_time", "a time that is none, or has no zone"
    NO_TIME = "no_time", "a turn without its time; --sent-at gives one to all of them"
    TIME_OUT_OF_RANGE = "time_out_of_range", "a time in the future, or before 1970"
    BAD_CUSTOMER = "bad_customer", "a customer who can't be told from others"
    BAD_TURN_ID = "bad_turn_id", "a turn's id that can't be kept"
    TURN_ID_TWICE = "turn_id_twice", "an id that two turns of a dialogue have"
    REFUSED = "refused", "a dialogue that the suite refused"
    # A field is left out of an import.
    CUSTOMER_FIELD = (
        "customer_field",
        "a name, address, number or id of a customer that can't be kept",
    )
    SPEAKER_FIELD = "speaker_field", "an id or a name of a speaker that can't be kept"

    def __init__(self, word: str, meaning: str) -> None:
        self.word = word
        self.meaning = meaning


TURN_KINDS: Final = frozenset(
    {
        Kind.EMPTY,
        Kind.BLANK,
        Kind.INVISIBLE,
        Kind.NULL,
        Kind.NO_TEXT,
        Kind.NOT_TEXT,
        Kind.LONE_SURROGATE,
        Kind.SYSTEM,
        Kind.BEFORE_CUSTOMER,
    }
)
"""The kinds that leave out a turn."""

FIELD_KINDS: Final = frozenset({Kind.CUSTOMER_FIELD, Kind.SPEAKER_FIELD})
"""The kinds that leave out a field of what is kept; all others leave out a dialogue."""


def scope_of(kind: Kind) -> str:
    """Return what a kind leaves out: turn, field or dialogue."""
    return "turn" if kind in TURN_KINDS else "field" if kind in FIELD_KINDS else "dialogue"


@dataclass(frozen=True, slots=True)
class Place:
    """Where an oddity is: the line, the dialogue's id if it has one, and the turn (from 1; 0: the dialogue)."""

    line: int
    dialogue: str = ""
    turn: int = 0

    def __str__(self) -> str:
        parts = [f"line {self.line}"]
        if self.dialogue:
            parts.append(f"dialogue {self.dialogue}")
        if self.turn:
            parts.append(f"turn {self.turn}")
        return ", ".join(parts)


@dataclass(slots=True)
class Balance:
    """What a file holds and what of it is left out: `turns` = `played` + the sum of `turns_out`; so for dialogues."""

    dialogues: int = 0
    turns: int = 0
    dialogues_played: int = 0
    played: int = 0
    turns_out: Counter[Kind] = field(default_factory=Counter)
    dialogues_out: Counter[Kind] = field(default_factory=Counter)
    fields_out: Counter[Kind] = field(default_factory=Counter)
    places: dict[Kind, list[Place]] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return not self.places

    def leave_turn(self, kind: Kind, place: Place) -> None:
        """Count a turn that is left out."""
        self.turns_out[kind] += 1
        self._note(kind, place)

    def leave_field(self, kind: Kind, place: Place) -> None:
        """Count a field that is left out of a turn, or of a dialogue, which is kept."""
        self.fields_out[kind] += 1
        self._note(kind, place)

    def leave_dialogue(self, kind: Kind, place: Place, turns: int) -> None:
        """Count a dialogue that is left out with all its turns, as far as they can be counted."""
        self.dialogues_out[kind] += 1
        if turns:
            self.turns_out[kind] += turns
        self._note(kind, place)

    def take_back(self, kind: Kind, place: Place, turns: int) -> None:
        """Count a dialogue as left out that was counted as played."""
        self.dialogues_played -= 1
        self.played -= turns
        self.leave_dialogue(kind, place, turns)

    def _note(self, kind: Kind, place: Place) -> None:
        places = self.places.setdefault(kind, [])
        if len(places) < PLACES:
            places.append(place)

    def count(self, kind: Kind) -> int:
        """Return how often a kind was found: turns or dialogues."""
        counts = {"turn": self.turns_out, "field": self.fields_out, "dialogue": self.dialogues_out}
        return counts[scope_of(kind)][kind]

    def report(self, done: str = "played") -> dict[str, Any]:
        """Return the balance and the oddities in the form of --json; `done` names what was done with the rest."""
        return {
            "dialogues": self.dialogues,
            f"dialogues_{done}": self.dialogues_played,
            "dialogues_left_out": {
                kind.word: self.dialogues_out[kind] for kind in Kind if self.dialogues_out[kind]
            },
            "turns": self.turns,
            done: self.played,
            "left_out": {
                kind.word: self.turns_out[kind]
                for kind in Kind
                if kind in self.places and kind not in FIELD_KINDS
            },
            "oddities": [
                {
                    "kind": kind.word,
                    "leaves_out": scope_of(kind),
                    "count": self.count(kind),
                    "meaning": kind.meaning,
                    "places": [
                        {"line": each.line, "dialogue": each.dialogue, "turn": each.turn}
                        for each in self.places[kind]
                    ],
                }
                for kind in Kind
                if kind in self.places
            ],
        }

    def lines(self) -> list[str]:
        """Return the oddities for people: a line for each kind."""
        found = []
        for kind in Kind:
            if kind not in self.places:
                continue
            places = "; ".join(str(each) for each in self.places[kind])
            more = "; …" if self.count(kind) > len(self.places[kind]) else ""
            found.append(
                f"left out: {self.count(kind):,} × {scope_of(kind)} {kind.word} ({kind.meaning}): {places}{more}"
            )
        return found


def shown(dialogue_id: object) -> str:
    """Return a dialogue's id for reports: at most ID_SHOWN characters; only a text or a number is an id."""
    if isinstance(dialogue_id, bool) or not isinstance(dialogue_id, str | int):
        return ""
    text = str(dialogue_id)
    return text if len(text) <= ID_SHOWN else text[:ID_SHOWN] + "…"
