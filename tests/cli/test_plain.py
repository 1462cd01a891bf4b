"""What others wrote, in the terminal of `deskwire chat` and `tail`; and what `tail --from` takes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from unicodedata import category

import grpc
import pytest

from deskwire.common.v1 import actor_pb2
from deskwire.gateway.v1 import frame_pb2
from deskwire_cli.chat import Side, Terminal
from deskwire_cli.plain import plain, plain_json
from deskwire_cli.tail import one_line, start_at
from deskwire_common.errors import InvalidArgument

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
HOSTILE = "a\x1b]0;t\x07\nann: yes\x9b2J\x7f\u2028b\u202egpj\u2066\u200f\r\tz"
RUNS_COMMANDS = set("\x1b\x07\n\x9b\x7f\u2028\u202e\u2066\u200f\r\t")


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert plain("a\x1b[2J\nb\u202ec") == r"a\u001b[2J\u000ab\u202ec"
    assert plain("\ud83d") == r"\ud83d"
    every = "".join(map(chr, range(0x11_0000)))
    assert {category(each) for each in plain(every)}.isdisjoint({"Cc", "Cs", "Zl", "Zp"})
    # What people write stays: joiners, blanks of all scripts, emoji newer than the interpreter, backslashes.
    for text in (
        "مهدی\u200cزاده",
        "👨\u200d👩\u200d👧",
        "山田\u3000太郎",
        "Jean\u00a0D",
        "\U0001fae8",
        r"C:\new",
    ):
        assert plain(text) == text


def test_escaped_json_has_the_same_value() -> None:
    value = {"said": HOSTILE, HOSTILE: ["中", "\ud83d"]}
    for indent in (None, 2):
        text = plain_json(value, indent=indent)
        assert json.loads(text) == value
        assert not (RUNS_COMMANDS - {"\n"}) & set(text)
        assert "中" in text


def test_an_event_is_one_line() -> None:
    event = {
        "event_type": "chat.message",
        "subject": HOSTILE,
        "sequence": 1,
        "origin": HOSTILE,
        "data": {"text": HOSTILE * 20},
    }
    assert not RUNS_COMMANDS & set(one_line(event))


def pushes() -> list[frame_pb2.Push]:
    """What can bring others' text to a terminal, each kind with hostile text in all that it prints."""
    sender = {"role": actor_pb2.ROLE_VISITOR, "subject": HOSTILE, "display_name": HOSTILE}
    customer: dict[str, Any] = {"display_name": HOSTILE, "mobile": HOSTILE, "email": HOSTILE}
    contents: list[dict[str, Any]] = [{"text": HOSTILE}, {"attachment": {"file_name": HOSTILE}}]
    conversation = {"conversation_id": "1", "agent_id": HOSTILE}
    offered = {"conversation_id": "2", "visitor_id": HOSTILE}
    return [
        *(
            frame_pb2.Push(message={"conversation_id": "1", "sender": sender, "content": content})  # type: ignore[arg-type]
            for content in contents
        ),
        frame_pb2.Push(customer=customer),  # type: ignore[arg-type]
        frame_pb2.Push(conversation=conversation),  # type: ignore[arg-type]
        frame_pb2.Push(offer={"conversation": offered}),  # type: ignore[arg-type]
        frame_pb2.Push(offer={"conversation": offered, "customer": customer}),  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("side", Side)
async def test_a_push_is_one_line(side: Side, capsys: pytest.CaptureFixture[str]) -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        terminal = Terminal(side, "ann", channel)
        for push in pushes():
            terminal.see(push)
            printed = capsys.readouterr().out
            assert printed.endswith("\n")
            assert not RUNS_COMMANDS & set(printed[:-1]), printed
            assert r"\u001b" in printed


@pytest.mark.parametrize(
    "text",
    [
        "2027-02-29",
        "2027-13-01T00:00:00Z",
        "20270229",
        "",
        "10w",
        "10min",
        "-5m",
        "+5m",
        "1.5",
        "5 m",
        "٣m",
        "9999-12-31T23:59:59-14:00",
        "2026-01-01T25:00",
        "a\nb\x1b",
    ],
)
def test_what_is_no_place_to_start_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is none of: earliest") as refused:
        start_at(text, now=NOW)
    assert not RUNS_COMMANDS & set(str(refused.value))


@pytest.mark.parametrize(
    "text",
    [
        "earliest",
        "9999999d",
        "9" * 400 + "d",
        "30000d",
        "1969-12-31",
        "0001-01-01T00:00:00+14:00",
        "1970-01-01",
    ],
)
def test_a_time_before_1970_means_everything(text: str) -> None:
    assert start_at(text, now=NOW).WhichOneof("position") == "earliest"


def test_other_places_to_start_are_what_they_say() -> None:
    assert start_at("90m", now=NOW).time.ToDatetime(UTC) == NOW - timedelta(minutes=90)
    assert start_at("0.5d", now=NOW).time.ToDatetime(UTC) == NOW - timedelta(hours=12)
    assert start_at("2024-02-29", now=NOW).time.ToDatetime(UTC) == datetime(2024, 2, 29, tzinfo=UTC)
    assert start_at("1970-01-01T00:00:01Z", now=NOW).time.seconds == 1
    assert start_at("1eJyLVspOrVSyUiopKk1VqgUAJ5sE-Q", now=NOW).cursor
