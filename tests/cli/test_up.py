"""The suite on one machine, driven as scripts do: up, status, token, down."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from deskwire_cli.machine.home import Home
from deskwire_cli.machine.ports import HOST, LAYOUT, is_free
from deskwire_cli.suite import load_suite
from deskwire_common.auth import KeySet, Profile, TokenVerifier
from support import eventually
from support.command import Command
from support.ports import free_base

SERVICES = {"chat", "tickets", "events", "cdc", "gateway"}


@pytest.fixture
def deskwire(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path / "home", free_base())
    yield command
    if Home(command.home).is_locked():
        command("down")


def children_of(home: Path) -> list[int]:
    """Living processes that have this home in their command line or settings."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ", "status"]):
        if process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        text = " ".join(process.info["cmdline"] or [])
        environment = process.info["environ"] or {}
        if str(home) in text or str(home) in environment.get("DESKWIRE_KEYS_FILE", ""):
            found.append(process.pid)
    return found


def replayed(deskwire: Command, folder: Path) -> tuple[int, dict[str, Any]]:
    """Exit code and report of `replay` of two dialogues; whatever the broker, history has each turn once."""
    file = folder / "dialogues.jsonl"
    dialogues = [
        {"id": "a", "turns": [{"from": "customer", "text": "Where is it?"}]},
        {
            "id": "b",
            "turns": [
                {"from": "user", "text": "你好 🙂"},
                {"from": "agent", "text": "您好"},
                {"from": "user", "text": "在哪里？"},
            ],
        },
    ]
    file.write_text("".join(f"{json.dumps(each)}\n" for each in dialogues))
    done = deskwire("replay", str(file), "--json", "--pairs", "2")
    found = json.loads(done.stdout)
    counts = ("dialogues", "turns", "acked", "stored", "missing", "duplicates", "out_of_order")
    assert [found[name] for name in counts] == [2, 4, 4, 4, 0, 0, 0], done.stderr
    return done.returncode, found


def test_before_the_first_up(deskwire: Command) -> None:
    code, status = deskwire.status()
    assert (code, status["healthy"], status["phase"]) == (1, False, "stopped")
    down = deskwire("down")
    assert down.returncode == 0
    assert "no suite runs in" in down.stderr


def test_a_taken_port_is_one_line(deskwire: Command) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((HOST, deskwire.base + LAYOUT["tickets"]))
        taken.listen()
        done = deskwire("up", "--no-demo", "--port-base", str(deskwire.base))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"deskwire: port {deskwire.base + 3} (tickets) is taken: stop what listens there, "
        "or choose other ports with --port-base N\n"
    )


def test_a_wrong_option_is_exit_2(deskwire: Command) -> None:
    assert deskwire("up", "--no-such-option").returncode == 2
    assert deskwire("no-such-command").returncode == 2


def test_a_kafka_that_is_not_there_is_one_line(deskwire: Command) -> None:
    done = deskwire("up", "--no-demo", "--port-base", str(deskwire.base), "--kafka", f"{HOST}:9")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"deskwire: --kafka {HOST}:9: no metadata")
    assert children_of(deskwire.home) == []


def test_tokens(deskwire: Command) -> None:
    done = deskwire(
        "token",
        "--role",
        "integration",
        "--tenant",
        "acme",
        "--subject",
        "crm",
        "--system",
        "crm:x",
    )
    principal = TokenVerifier(KeySet.load(deskwire.home / "keys.json")).verify(done.stdout.strip())
    assert (principal.tenant, principal.role, principal.system) == ("acme", "integration", "crm:x")
    without = deskwire("token", "--role", "integration", "--tenant", "acme", "--subject", "crm")
    assert without.returncode == 1
    assert without.stdout == ""
    assert without.stderr == "deskwire: an integration needs a system id, such as crm:main\n"
    assert deskwire("token", "--role", "service", "--subject", "x").returncode == 2
    visitor = ("token", "--role", "visitor", "--subject", "web-1")
    done = deskwire(*visitor, "--email", "li@example.org", "--id", "crm:main=4711")
    found = TokenVerifier(KeySet.load(deskwire.home / "keys.json")).verify(done.stdout.strip())
    assert found.profile == Profile("li@example.org", "", (("crm:main", "4711"),))
    bad = deskwire(*visitor, "--id", "4711")
    assert bad.stderr == "deskwire: --id 4711 is not SYSTEM=ID, such as crm:main=4711\n"


@pytest.mark.timeout(300)
def test_up_status_down_and_up_again(deskwire: Command, kafka: str, tmp_path: Path) -> None:
    first = deskwire.up("--kafka", kafka)
    assert first.returncode == 0, first.stderr
    assert first.stdout == ""

    code, status = deskwire.status()
    assert (code, status["healthy"], status["phase"]) == (0, True, "ready")
    health = {each["name"]: each["health"] for each in status["processes"]}
    assert health == dict.fromkeys({*SERVICES, "valkey", "kafka"}, "SERVING")
    assert {each["name"] for each in status["stores"]} == SERVICES - {"gateway"}
    assert all(each["version"] for each in status["processes"])

    # A stranger's client needs a token and reflection, nothing else.
    suite = load_suite(deskwire.home)
    with grpc.insecure_channel(suite.tickets) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        service = pool.FindServiceByName("deskwire.tickets.v1.TicketService")
        assert service.FindMethodByName("CreateTicket") is not None

    code, found = replayed(deskwire, tmp_path)
    assert (code, found["on_kafka"]) == (0, found["turns"])

    again = deskwire.up("--kafka", kafka)
    assert again.returncode == 1
    assert again.stderr.startswith(f"deskwire: a suite is already running in {deskwire.home}")

    # A part that dies is noticed, by status and by the supervisor.
    (chat,) = (each["pid"] for each in status["processes"] if each["name"] == "chat")
    os.kill(chat, signal.SIGKILL)
    asyncio.run(eventually(lambda: deskwire.status()[0] == 1))
    code, status = deskwire.status()
    assert (code, status["healthy"]) == (1, False)
    assert "chat was killed by SIGKILL" in (deskwire.home / "logs" / "up.log").read_text()

    down = deskwire("down")
    assert down.returncode == 0, down.stderr
    assert children_of(deskwire.home) == []
    log = (deskwire.home / "logs" / "up.log").read_text().splitlines()
    stops = [line.split()[1] for line in log if line.startswith("stopping ")]
    assert stops == ["gateway", "cdc", "events", "tickets", "valkey"]
    assert all(is_free(deskwire.base + distance) for distance in LAYOUT.values())

    key = (deskwire.home / "keys.json").read_bytes()
    second = deskwire.up("--kafka", kafka)
    assert second.returncode == 0, second.stderr
    assert "at schema" not in second.stderr  # the databases were found
    assert (deskwire.home / "keys.json").read_bytes() == key

    # Killed with no chance to stop anything: nothing is left behind.
    os.kill(json.loads((deskwire.home / "run" / "state.json").read_text())["pid"], signal.SIGKILL)
    asyncio.run(eventually(lambda: children_of(deskwire.home) == []))
    assert deskwire.status()[0] == 1


@pytest.mark.timeout(300)
def test_the_whole_walk_without_apache_kafka(deskwire: Command, tmp_path: Path) -> None:
    up = deskwire("up", "-d", "--broker", "dev", "--port-base", str(deskwire.base))
    assert up.returncode == 0, up.stderr
    assert "topics and offsets are gone when it stops" in up.stderr
    assert "Alice solved it; the CRM has that too" in up.stderr
    # What was published is still in the databases, marked.
    kept = {}
    for service in ("chat", "tickets"):
        with sqlite3.connect(deskwire.home / "databases" / f"{service}.db") as database:
            rows = database.execute("SELECT topic FROM outbox_published WHERE published_at > 0")
            kept[service] = {row[0] for row in rows}
    assert {"deskwire.conversations", "deskwire.customers"} <= kept["chat"]
    assert kept["tickets"] == {"deskwire.tickets"}
    # The same with recorded dialogues, but nothing can be proved of a topic that forgets.
    code, found = replayed(deskwire, tmp_path)
    assert (code, found["on_kafka"]) == (3, None)
    # What can't be played is left out, and the rest is played.
    odd = tmp_path / "odd.jsonl"
    turns = [
        {"from": "agent", "text": "Hello?"},
        {"from": "user", "text": "Hi"},
        {"from": "bot", "text": None},
    ]
    turns += [{"from": "bot", "text": "How can I help?"}, {"from": "user", "text": "a\x00b"}]
    odd.write_text(json.dumps({"id": 1, "turns": turns}) + '\r\n{"id": 2, "turns": [{"fr')
    done = deskwire("replay", str(odd), "--json", "--as", "bot=agent")
    report = json.loads(done.stdout)
    assert done.returncode == 4, done.stderr
    assert [report[name] for name in ("turns", "played", "acked", "stored", "missing")] == [
        5,
        3,
        3,
        3,
        0,
    ]
    assert report["left_out"] == {"null": 1, "before_customer": 1, "cut_line": 0}
    assert deskwire("down").returncode == 0
