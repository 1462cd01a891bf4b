"""Recorded dialogues: JSON lines, plain or .gz."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deskwire_cli.machine.problem import Problem
from deskwire_wire.limits import MAX_TEXT

_SIDES: Final = {"customer": "visitor", "visitor": "visitor", "user": "visitor", "agent": "agent"}


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a dialogue; `visitor`: whether the visitor or the agent speaks."""

    visitor: bool
    text: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One recorded conversation; begins with a turn of the visitor."""

    dialogue_id: str
    turns: tuple[Turn, ...]


def load(path: Path) -> list[Dialogue]:
    """Read JSON lines, plain or .gz. Raises Problem that names the line that can't be played."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
        dialogues = list(_parse(path, text.split("\n")))
    except OSError as error:
        raise Problem(f"can't read {path}: {error.strerror or error}") from None
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise Problem(f"can't read {path}: it is damaged ({error})") from None
    if not dialogues:
        raise Problem(f"{path} holds no dialogue")
    repeated = [
        each for each, count in Counter(d.dialogue_id for d in dialogues).items() if count > 1
    ]
    if repeated:
        raise Problem(f"{path}: the id {repeated[0]!r} is there more than once")
    return dialogues


def _parse(path: Path, lines: Iterable[str]) -> Iterator[Dialogue]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
            turns = tuple(
                Turn(_SIDES[each["from"]] == "visitor", str(each["text"]))
                for each in document["turns"]
            )
            dialogue = Dialogue(str(document["id"]), turns)
        except (ValueError, KeyError, TypeError) as error:
            raise Problem(
                f"{path}:{number} is no dialogue {{id, turns: [{{from: customer|agent, text}}]}}: "
                f"{type(error).__name__} {error}"
            ) from None
        if not turns or not turns[0].visitor:
            raise Problem(f"{path}:{number}: a dialogue begins with a turn of the customer")
        if not all(0 < len(turn.text) <= MAX_TEXT for turn in turns):
            raise Problem(f"{path}:{number}: a turn has 1 to {MAX_TEXT} characters")
        yield dialogue
