"""Recorded dialogues are read whole, every oddity is counted and placed, and the balance of turns always closes."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from deskwire_cli.machine.problem import Problem
from deskwire_cli.main import app
from deskwire_cli.recorded import lines
from deskwire_cli.recorded.dialogues import Dialogue, Rules, Speaker, dialogues_of, speakers
from deskwire_cli.recorded.oddities import PLACES, TURN_KINDS, Balance, Kind
from deskwire_cli.recorded.recording import Recording

NAMES = {each.value: each for each in (Speaker.CUSTOMER, Speaker.AGENT, Speaker.SYSTEM)}
RULES = Rules(NAMES, customer_begins=True)

Write = Callable[[bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(data: bytes) -> Path:
        path = tmp_path / "log.jsonl"
        path.write_bytes(data)
        return path

    return to_file


def dialogue(name: Any, *texts: Any) -> dict[str, Any]:
    """Customer and agent in turn."""
    turns = [
        {"from": "agent" if place % 2 else "customer", "text": text}
        for place, text in enumerate(texts)
    ]
    return {"id": name, "turns": turns}


def encoded(*documents: Any) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in documents)


def read(path: Path, rules: Rules = RULES) -> tuple[list[Dialogue], Balance]:
    balance = Balance()
    return list(dialogues_of(path, rules, balance)), balance


GOOD = dialogue("g1", "hi", "hello"), dialogue("g2", "hi", "hello", "bye")


@pytest.mark.parametrize(
    ("odd", "kind"),
    [
        (dialogue("x", "hi", "", "there?"), Kind.EMPTY),
        (dialogue("x", "hi", " \n\u3000", "there?"), Kind.BLANK),
        (dialogue("x", "hi", "\u2800", "there?"), Kind.INVISIBLE),
        (dialogue("x", "hi", "\u200b\ufeff\x07", "there?"), Kind.INVISIBLE),
        (dialogue("x", "hi", None, "there?"), Kind.NULL),
        (dialogue("x", "hi", 42, "there?"), Kind.NOT_TEXT),
        (dialogue("x", "hi", ["hello"], "there?"), Kind.NOT_TEXT),
        (dialogue("x", "hi", "a\ud83d", "there?"), Kind.LONE_SURROGATE),
    ],
)
def test_an_odd_turn_is_left_out_and_the_rest_stays_as_it_was(
    write: Write, odd: dict[str, Any], kind: Kind
) -> None:
    found, balance = read(write(encoded(GOOD[0], odd, GOOD[1])))
    assert [each.dialogue_id for each in found] == ["g1", "x", "g2"]
    assert [(each.number, each.text) for each in found[1].turns] == [(1, "hi"), (3, "there?")]
    assert (balance.turns, balance.played, balance.turns_out) == (8, 7, {kind: 1})
    assert [str(each) for each in balance.places[kind]] == ["line 2, dialogue x, turn 2"]


def of_raw_turns(*turns: Any) -> dict[str, Any]:
    return {"id": "x", "turns": list(turns)}


@pytest.mark.parametrize(
    ("line", "kind", "turns"),
    [
        (b'{"id": "x", "turns": [{"from": "cust', Kind.CUT_LINE, 0),
        (b"[" * 100_000, Kind.CUT_LINE, 0),
        (
            json.dumps(dialogue("x", "caf\u00e9"), ensure_ascii=False).encode("latin-1"),
            Kind.NOT_UTF8,
            0,
        ),
        (b"null", Kind.NOT_AN_OBJECT, 0),
        (b'{"id": "x", "id": "y", "turns": []}', Kind.KEY_TWICE, 0),
        (encoded({"turns": [{"from": "customer", "text": "hi"}]}), Kind.BAD_ID, 1),
        (encoded(dialogue(None, "hi")), Kind.BAD_ID, 1),
        (encoded(dialogue(True, "hi")), Kind.BAD_ID, 1),
        (encoded(dialogue(" ", "hi")), Kind.BAD_ID, 1),
        (encoded(dialogue("\ud83d", "hi")), Kind.BAD_ID, 1),
        (encoded(dialogue("i" * 129, "hi")), Kind.BAD_ID, 1),
        (encoded({"id": "x"}), Kind.NO_TURNS, 0),
        (encoded(dialogue("x")), Kind.NO_TURNS, 0),
        (encoded({"id": "x", "turns": "hi"}), Kind.NO_TURNS, 0),
        (encoded(of_raw_turns({"from": "customer", "text": "hi"}, "hello")), Kind.BAD_TURN, 2),
        (encoded(of_raw_turns({"from": "bot", "text": "hi"})), Kind.UNKNOWN_SPEAKER, 1),
        (encoded(of_raw_turns({"text": "hi"})), Kind.UNKNOWN_SPEAKER, 1),
        (encoded(of_raw_turns({"from": ["customer"], "text": "hi"})), Kind.UNKNOWN_SPEAKER, 1),
        (encoded(dialogue("x", "hi", "y" * 8_001)), Kind.TOO_LONG, 2),
        (encoded(dialogue("g1", "hi", "another")), Kind.ID_TWICE, 2),
        (encoded(dialogue("x", "", None)), Kind.NOTHING_LEFT, 2),
        (encoded(of_raw_turns({"from": "agent", "text": "hi"})), Kind.NOTHING_LEFT, 1),
    ],
)
def test_an_odd_dialogue_is_left_out_whole(
    write: Write, line: bytes, kind: Kind, turns: int
) -> None:
    found, balance = read(write(encoded(GOOD[0]) + line.strip() + b"\n" + encoded(GOOD[1])))
    assert [each.dialogue_id for each in found] == ["g1", "g2"]
    assert balance.dialogues_out == {kind: 1}
    assert balance.turns_out.total() == turns
    assert (balance.dialogues, balance.turns, balance.played) == (3, 5 + turns, 5)
    assert [each.line for each in balance.places[kind]] == [2]


def test_the_longest_text_of_any_script_is_whole(write: Write) -> None:
    texts = ["y" * 8_000, "\u4e2d" * 8_000, "\U0001f642" * 8_000, "a\x00b", "\U0001fae8", "  in  "]
    found, balance = read(write(encoded(dialogue("x", *texts))))
    assert [each.text for each in found[0].turns] == texts
    assert balance.is_whole


@pytest.mark.parametrize(
    "form",
    [
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.rstrip(b"\n"),
        lambda data: b"\n  \n" + data + b"\n\n",
        gzip.compress,
        lambda data: gzip.compress(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n")),
        lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]),
    ],
    ids=["bom", "crlf", "no last line end", "blank lines", "gzip", "all", "members"],
)
def test_every_form_of_a_file_is_the_same(write: Write, form: Callable[[bytes], bytes]) -> None:
    found, balance = read(write(form(encoded(*GOOD))))
    assert [[turn.text for turn in each.turns] for each in found] == [
        ["hi", "hello"],
        ["hi", "hello", "bye"],
    ]
    assert balance.is_whole


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(encoded(*GOOD))[:-9],
        gzip.compress(encoded(*GOOD))[:-8] + bytes(8),
        b"\x1f\x8b",
    ],
    ids=["cut", "wrong checksum", "nothing"],
)
def test_a_damaged_gzip_is_refused_whole(write: Write, data: bytes) -> None:
    with pytest.raises(Problem, match="damaged"):
        read(write(data))


def test_a_line_without_end_is_never_held(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_BYTES", 200)
    monkeypatch.setattr(lines, "_SKIP", 64)
    long = encoded(dialogue("x", "y" * 400))
    found, balance = read(write(encoded(GOOD[0]) + long + encoded(GOOD[1])))
    assert [(each.line, each.dialogue_id) for each in found] == [(1, "g1"), (3, "g2")]
    assert balance.dialogues_out == {Kind.LONG_LINE: 1}


def test_what_an_agent_says_before_the_customer_is_left_out_and_counted(write: Write) -> None:
    turns = [{"from": "agent", "text": "can I help?"}, {"from": "customer", "text": "yes"}]
    found, balance = read(write(encoded({"id": 7, "turns": turns})))
    assert [each.text for each in found[0].turns] == ["yes"]
    assert balance.turns_out == {Kind.BEFORE_CUSTOMER: 1}
    kept, balance = read(write(encoded({"id": 7, "turns": turns})), Rules(NAMES, False))
    assert (len(kept[0].turns), balance.is_whole) == (2, True)


def test_speakers_are_named_by_the_caller(write: Write) -> None:
    rules = Rules(speakers(NAMES, NAMES, ["bot=agent", "a=b=system"]), customer_begins=True)
    turns = [{"from": name, "text": "hi"} for name in ("customer", "bot", "a=b", "system")]
    found, balance = read(write(encoded({"id": 1, "turns": turns})), rules)
    assert [each.speaker for each in found[0].turns] == [Speaker.CUSTOMER, Speaker.AGENT]
    assert balance.turns_out == {Kind.SYSTEM: 2}
    for wrong in ("bot", "=agent", "bot=", "bot=nobody"):
        with pytest.raises(ValueError, match="customer"):
            speakers(NAMES, NAMES, [wrong])


def test_many_oddities_have_a_few_places_and_no_text(write: Write) -> None:
    secret = "my card is 4111"
    odd = [dialogue(f"d{place}", "hi", secret, "") for place in range(40)]
    odd += [{"id": f"e{place}", "turns": [{"from": secret, "text": secret}]} for place in range(40)]
    _, balance = read(write(encoded(*odd)))
    report = balance.report()
    assert report["left_out"] == {"empty": 40, "unknown_speaker": 40}
    assert report["dialogues_left_out"] == {"unknown_speaker": 40}
    assert report["turns"] == report["played"] + sum(report["left_out"].values()) == 160
    assert [len(each["places"]) for each in report["oddities"]] == [PLACES, PLACES]
    assert "4111" not in json.dumps(report) + "".join(balance.lines())


VALUES = st.none() | st.integers() | st.text(max_size=6) | st.booleans() | st.lists(st.none())
TURNS = st.fixed_dictionaries(
    {"from": st.sampled_from(["customer", "agent", "system", "bot"]) | VALUES, "text": VALUES}
)
DOCUMENTS = st.fixed_dictionaries(
    {"id": st.integers(0, 5) | VALUES, "turns": st.lists(TURNS | VALUES, max_size=4) | VALUES}
)


@settings(max_examples=200)
@given(st.lists(DOCUMENTS | VALUES, max_size=8))
def test_the_balance_always_closes(
    tmp_path_factory: pytest.TempPathFactory, documents: list[Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(encoded(*documents))
    found, balance = read(path)
    report = balance.report()
    assert balance.dialogues == len(documents)
    assert balance.dialogues == len(found) + balance.dialogues_out.total()
    assert report["turns"] == sum(len(each.turns) for each in found) + sum(
        report["left_out"].values()
    )
    assert all(each.turns[0].visitor for each in found)
    assert balance.is_whole == (not balance.turns_out and not balance.dialogues_out)
    assert set(balance.turns_out) | set(balance.dialogues_out) == set(balance.places)
    assert not set(balance.dialogues_out) & TURN_KINDS


def test_a_file_that_changes_while_it_is_played_is_noticed(write: Write) -> None:
    path = write(encoded(*GOOD))
    _, balance = read(path)
    recording = Recording(path, RULES, balance)
    assert len(list(recording)) == 2
    with path.open("ab") as more:
        more.write(encoded(dialogue("g3", "hi")))
    with pytest.raises(Problem, match="was changed"):
        list(recording)


def replay(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["replay", *arguments])
    if isinstance(done.exception, Problem):
        return 1, done.stdout, str(done.exception)
    return done.exit_code, done.stdout, done.stderr


def test_a_dry_run_needs_no_suite(write: Write, tmp_path: Path) -> None:
    whole, odd = write(encoded(*GOOD)), tmp_path / "odd.jsonl"
    odd.write_bytes(encoded(*GOOD, dialogue("x", "hi", None)))
    assert replay(str(whole), "--dry-run", "--json")[0] == 0
    code, out, err = replay(str(odd), "--dry-run", "--json")
    report = json.loads(out)
    assert (code, report["turns"], report["played"], report["left_out"]) == (4, 7, 6, {"null": 1})
    assert "line 3, dialogue x, turn 2" in err
    assert "null" in replay(str(odd), "--dry-run")[1]
    code, _, why = replay(str(odd), "--strict")
    assert (code, bool(re.search("has 1 oddities", why))) == (1, True)


def test_a_file_without_anything_to_play(write: Write, tmp_path: Path) -> None:
    assert replay(str(write(b"\n \n")))[2].endswith("holds no dialogue")
    assert replay(str(tmp_path / "none"))[0] == 1
    assert replay(str(tmp_path))[0] == 1
    # Everything is left out: that is said, and no suite is needed.
    assert replay(str(write(b"{}\n")))[0] == 4
