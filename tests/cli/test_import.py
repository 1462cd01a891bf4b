"""`deskwire import`: what is in the file is in chat afterwards, each turn once, however often it was cut off."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from sqlalchemy import func, select
from typer.testing import CliRunner

from deskwire.chat.v1 import (
    conversation_pb2,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
)
from deskwire.common.v1 import actor_pb2
from deskwire_chat.domain.history import Provenance, conversation_id_of
from deskwire_chat.store.tables import messages
from deskwire_cli.importing.requests import REQUEST_BYTES, Form, time_of
from deskwire_cli.launch import serving
from deskwire_cli.machine.home import Home
from deskwire_cli.machine.ports import Ports
from deskwire_cli.machine.problem import Problem
from deskwire_cli.machine.process import Process, python_environment
from deskwire_cli.main import app
from deskwire_cli.recorded.dialogues import Dialogue, Rules, Speaker, dialogues_of
from deskwire_cli.recorded.oddities import Balance, Kind
from deskwire_common.auth import KeySet, Role, TokenSigner
from deskwire_common.db import Database
from deskwire_common.migrations import migrate
from deskwire_common.rpc import make_channel
from support import eventually
from support.command import Command
from support.ports import free_base
from support.world import Part

TIME = "2019-05-04T08:15:00.123456Z"
NOW = 1_795_000_000_000_000
SPEAKERS = {each.value: each for each in Speaker}


def turn(text: Any = "hi", speaker: str = "customer", **more: Any) -> dict[str, Any]:
    return {"from": speaker, "text": text, "at": TIME, **more}


def dialogue(name: Any, *turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": name, "turns": list(turns or [turn()]), **more}


def written(path: Path, *documents: Any) -> Path:
    path.write_text("".join(f"{json.dumps(each)}\n" for each in documents))
    return path


def read(path: Path, *documents: Any, sent_at: int = 0) -> tuple[Form, list[Dialogue], Balance]:
    form = Form("old", sent_at, NOW)
    balance = Balance()
    rules = Rules(SPEAKERS, customer_begins=False, check=form.check)
    return form, list(dialogues_of(written(path, *documents), rules, balance)), balance


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl"


@pytest.mark.parametrize(
    ("given", "micros"),
    [
        ("1970-01-01T00:00:00Z", 0),
        (TIME, 1_556_957_700_123_456),
        ("2019-05-04T10:15:00.123456+02:00", 1_556_957_700_123_456),
        (1_556_957_700, 1_556_957_700_000_000),
        (1_556_957_700.123456, 1_556_957_700_123_456),
    ],
)
def test_times_are_exact(given: Any, micros: int) -> None:
    assert time_of(given) == micros


@pytest.mark.parametrize(
    "given",
    [
        "",
        "2019-05-04T08:15:00",
        "2019-05-04",
        "yesterday",
        "2019-02-30T00:00:00Z",
        True,
        [],
        {},
        float("nan"),
        float("inf"),
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
    ],
)
def test_what_is_no_time_leaves_the_dialogue_out(file: Path, given: Any) -> None:
    _, found, balance = read(file, dialogue("x", turn(), turn(at=given)))
    assert found == []
    assert balance.dialogues_out in ({Kind.BAD_TIME: 1}, {Kind.TIME_OUT_OF_RANGE: 1})
    assert [each.turn for places in balance.places.values() for each in places] == [2]


@pytest.mark.parametrize(
    ("odd", "kind"),
    [
        (dialogue("x", turn(at=None)), Kind.NO_TIME),
        (dialogue("x", turn(at=NOW // 1_000_000 + 1)), Kind.TIME_OUT_OF_RANGE),
        (dialogue("x", turn(at=1_556_957_700_123)), Kind.TIME_OUT_OF_RANGE),  # milliseconds
        (dialogue("x", turn(at=-1)), Kind.TIME_OUT_OF_RANGE),
        (dialogue("x", turn(id="a"), turn(id="a")), Kind.TURN_ID_TWICE),
        (dialogue("x", turn(), turn(id="1")), Kind.TURN_ID_TWICE),
        (dialogue("x", turn(id="i" * 65)), Kind.BAD_TURN_ID),
        (dialogue("x", turn(id="a ")), Kind.BAD_TURN_ID),
        (dialogue("x", turn(id="")), Kind.BAD_TURN_ID),
        (dialogue("x", turn(id=1.5)), Kind.BAD_TURN_ID),
        (dialogue("x", customer={"id": ""}), Kind.BAD_CUSTOMER),
        (dialogue("x", customer=[7]), Kind.BAD_CUSTOMER),
        (dialogue("x", customer={"id": "\ud83d"}), Kind.BAD_CUSTOMER),
        (dialogue("x", turn(speaker="robot")), Kind.UNKNOWN_SPEAKER),
    ],
)
def test_what_would_be_a_guess_leaves_the_dialogue_out(
    file: Path, odd: dict[str, Any], kind: Kind
) -> None:
    _, found, balance = read(file, dialogue("a"), odd, dialogue("b"))
    assert [each.dialogue_id for each in found] == ["a", "b"]
    assert balance.dialogues_out == {kind: 1}


def test_a_field_that_can_not_be_kept_leaves_out_nobody(file: Path) -> None:
    form, found, balance = read(
        file,
        dialogue(
            "x",
            turn(speaker="agent", by="\u00e4nne", name="A\nB"),
            turn(speaker="agent", by="auth0|ann", name="Ann\u3000S"),
            customer={"id": 7, "name": "n" * 129, "email": 5, "mobile": "\u202a+8613800138000\u202c\u00a0",
                      "visitor": "li-na", "ids": {"crm:main": "4711", "a b": "x"}},
        ),
    )  # fmt: skip
    assert balance.fields_out == {Kind.CUSTOMER_FIELD: 3, Kind.SPEAKER_FIELD: 2}
    assert not balance.is_whole
    assert balance.report("imported")["left_out"] == {}
    (request,) = form.requests(found[0])
    assert [(each.namespace, each.value) for each in request.customer.identities] == [
        ("old", "7"),
        ("crm:main", "4711"),
        ("visitor", "li-na"),
    ]
    assert (request.customer.display_name, request.customer.mobile) == ("", "+8613800138000")
    assert [(each.sender_id, each.sender_name) for each in request.messages] == [
        ("", ""),
        ("auth0|ann", "Ann\u3000S"),
    ]


def test_whoever_has_no_id_is_known_by_the_dialogue(file: Path) -> None:
    form, found, balance = read(file, dialogue(7), dialogue(8, customer={"name": "Li"}))
    assert balance.is_whole
    customers = [next(form.requests(each)).customer for each in found]
    assert [(each.identities[0].namespace, each.identities[0].value) for each in customers] == [
        ("old:conversation", "7"),
        ("old:conversation", "8"),
    ]


def test_a_long_dialogue_is_several_requests_in_its_order(file: Path) -> None:
    turns = [turn("\u4e2d" * 8_000) for _ in range(100)] + [turn("short") for _ in range(4_500)]
    form, found, balance = read(file, dialogue("x", *turns))
    assert balance.is_whole
    requests = list(form.requests(found[0]))
    assert all(each.ByteSize() <= REQUEST_BYTES for each in requests)
    assert max(len(each.messages) for each in requests) == 2_000
    ids = [message.external_id for each in requests for message in each.messages]
    assert ids == [str(number) for number in range(1, 4_601)]


# ------------------------------------------------------------------------------------- with a chat


class Chat:
    """A chat process, which can be killed, in a home that looks like a running suite's."""

    def __init__(self, home: Home, base: int, kafka: str, url: str) -> None:
        self.url = url
        self.command = Command(home.root, base)
        self.address = Ports(base).address("chat")
        self._signer = TokenSigner(KeySet.load(home.keys_file))
        process = Process(
            name="chat",
            command=[sys.executable, "-m", "deskwire_chat", "serve"],
            log=home.root / "chat.log",
            env={
                **python_environment(),
                "DESKWIRE_GRPC_LISTEN": self.address,
                "DESKWIRE_KEYS_FILE": str(home.keys_file),
                "DESKWIRE_DATABASE_URL": url,
                "DESKWIRE_KAFKA": kafka,
                "DESKWIRE_SHARD_NAME": "chat-0",
            },
        )
        self.part = Part(process, serving(self.address))

    async def run(self, *arguments: str) -> CompletedProcess[str]:
        return await asyncio.to_thread(self.command, "import", *arguments)

    async def stored(self) -> int:
        """How many messages are stored."""
        db = await Database.open(self.url, pool_size=1)
        try:
            async with db.read() as c:
                return int(await c.scalar(select(func.count()).select_from(messages)) or 0)
        finally:
            await db.close()

    async def history(self, name: str) -> list[conversation_pb2.Message]:
        token = self._signer.mint(tenant="demo", role=Role.OPERATOR, subject="me")
        async with make_channel(self.address, token=lambda: token) as channel:
            stub = conversation_service_pb2_grpc.ConversationServiceStub(channel)
            found: list[conversation_pb2.Message] = []
            while True:
                answer = await stub.ListMessages(
                    conversation_service_pb2.ListMessagesRequest(
                        conversation_id=conversation_id_of("demo", Provenance("old", name)),
                        after_seq=len(found),
                        page_size=1_000,
                    )
                )
                found += answer.messages
                if len(found) >= answer.head_seq:
                    return found


@pytest.fixture
async def chat(tmp_path: Path, kafka: str, database_url: str) -> AsyncIterator[Chat]:
    home, base = Home(tmp_path / "home"), free_base()
    home.prepare()
    await migrate(database_url, "deskwire_chat")
    home.write_state(
        {"port_base": base, "websocket": "", "kafka": kafka, "broker": "kafka", "demo": False}
    )
    found = Chat(home, base, kafka, database_url)
    with home.locked():
        await found.part.start()
        yield found
        found.part.process.stop()


async def test_an_import_and_what_it_leaves_out(chat: Chat, file: Path) -> None:
    written(
        file,
        dialogue(
            "a", turn("hello"), turn("yes?", "bot", by="robo"), turn("tired", "note", by="ann"),
            turn("", "agent"), turn("ann joined", "system"),
        ),
        dialogue("b", turn("hi", at=None)),
        dialogue("c", turn("bye", "agent", by="ann"), customer="c-1"),
    )  # fmt: skip
    done = await chat.run(str(file), "--source", "old", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 4, done.stderr
    counts = ("dialogues", "dialogues_imported", "turns", "imported", "stored", "duplicates")
    assert [report[name] for name in counts] == [3, 2, 7, 4, 4, 0]
    assert report["left_out"] == {"empty": 1, "system": 1, "no_time": 1}
    found = await chat.history("a")
    said = [each.content.text or each.content.note.text for each in found]
    assert said == ["hello", "yes?", "tired"]
    assert [each.sender.role for each in found] == [
        actor_pb2.ROLE_VISITOR,
        actor_pb2.ROLE_BOT,
        actor_pb2.ROLE_AGENT,
    ]
    moment = datetime.fromisoformat(TIME)
    assert {each.create_time.ToDatetime(tzinfo=UTC) for each in found} == {moment}

    # Again, with the time that was missing: what was there stays as it was.
    again = await chat.run(str(file), "--source", "old", "--json", "--sent-at", TIME)
    report = json.loads(again.stdout)
    assert (again.returncode, report["stored"], report["duplicates"]) == (4, 1, 4)
    assert (await chat.history("a")) == found

    # What differs is refused, by itself, with its reason.
    written(file, dialogue("a", turn("HELLO")), dialogue("d", turn("new")))
    other = await chat.run(str(file), "--source", "old", "--json")
    report = json.loads(other.stdout)
    assert (other.returncode, report["stored"]) == (4, 1)
    assert [(each["line"], each["dialogue"], each["reason"]) for each in report["refused"]] == [
        (1, "a", "CLIENT_MSG_ID_REUSED")
    ]
    assert report["turns"] == report["imported"] + sum(report["left_out"].values())
    assert report["left_out"] == {"refused": 1}
    assert "HELLO" not in other.stderr + other.stdout

    written(file, dialogue("e", turn("whole")))
    whole = await chat.run(str(file), "--source", "old")
    assert (whole.returncode, "1 turns stored now" in whole.stdout) == (0, True)


async def test_killed_again_and_again_nothing_is_missing_or_there_twice(
    chat: Chat, file: Path
) -> None:
    talks = {f"t{number}": [f"{number}.{place}" for place in range(30)] for number in range(120)}
    # This one is longer than a request: it may be cut off between its parts.
    talks["t60"] = [f"{place} " + "\u4e2d" * 7_000 for place in range(120)]
    written(file, *(dialogue(name, *map(turn, texts)) for name, texts in talks.items()))
    arguments = ("import", str(file), "--source", "old", "--json")

    async def reached(count: int) -> None:
        await eventually(lambda: _is_reached(chat, count), timeout=60)

    cut_off = await chat.command.begin(*arguments)
    await reached(600)
    cut_off.kill()
    await cut_off.wait()
    going_on = await chat.command.begin(*arguments)
    await reached(1_200)
    # The command outlasts the death of the chat process.
    await chat.part.kill()
    await chat.part.start()
    await reached(1_800)
    await chat.part.kill()
    await chat.part.start()
    out, _ = await going_on.communicate()
    report = json.loads(out)
    assert (going_on.returncode, report["imported"]) == (0, 119 * 30 + 120)
    assert report["stored"] + report["duplicates"] == report["imported"] == await chat.stored()
    for name, texts in talks.items():
        found = await chat.history(name)
        assert [each.content.text for each in found] == texts
        assert [each.seq for each in found] == list(range(1, len(found) + 1))


async def _is_reached(chat: Chat, count: int) -> bool:
    return await chat.stored() >= count


def ran(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and what is said on stderr, where no suite runs."""
    done = CliRunner().invoke(app, ["import", *arguments])
    if isinstance(done.exception, Problem):
        return 1, done.stdout, done.stderr + str(done.exception)
    return done.exit_code, done.stdout, done.stderr


def test_a_dry_run_and_a_strict_one_send_nothing(file: Path) -> None:
    written(file, dialogue("a"), dialogue("b", turn(None)))
    code, out, _ = ran(str(file), "--dry-run", "--json")
    report = json.loads(out)
    assert (code, report["imported"], report["left_out"]) == (4, 1, {"nothing_left": 1})
    assert "nothing_left" in ran(str(file), "--dry-run")[1]
    code, out, err = ran(str(file), "--strict")
    assert (code, out) == (1, "")
    assert err.endswith("and with --strict none is left out")


@pytest.mark.parametrize(
    "wrong",
    [
        ("--source", "a b"),
        ("--source", "visitor"),
        ("--source", "s" * 49),
        ("--sent-at", "yesterday"),
        ("--as", "x"),
        ("--sent-at", "2999-01-01T00:00:00Z"),
        ("--as", "x=nobody"),
    ],
)
def test_a_wrong_option_is_exit_2(file: Path, wrong: tuple[str, str]) -> None:
    assert ran(str(written(file, dialogue("a"))), *wrong)[0] == 2
