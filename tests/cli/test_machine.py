"""The pieces that `deskwire up` is made of."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deskwire_cli.launch import make_plan
from deskwire_cli.machine import kafka, valkey
from deskwire_cli.machine.home import Home, write_atomically
from deskwire_cli.machine.ports import HOST, LAYOUT, Ports
from deskwire_cli.machine.problem import Problem
from deskwire_cli.machine.process import Process
from deskwire_cli.suite import load_suite
from deskwire_common.auth import KeySet
from support import eventually
from support.ports import free_port

SLEEPER = [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\n"
    "while True: signal.pause()",
]


def says(log: Path, word: str):
    return lambda: "" if log.exists() and word in log.read_text() else f"no {word!r} yet"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.prepare()
    return home


def plan_of(home: Home, **options):
    given = {
        "port_base": 17400,
        "demo": False,
        "broker": "dev",
        "kafka_address": "",
        "redis": "",
        "databases": [],
    }
    return make_plan(home, **{**given, **options})


def test_ports_are_at_fixed_distances():
    ports = Ports(17400)
    assert ports.address("websocket") == "127.0.0.1:17400"
    assert ports.port("kafka") == 17492
    assert len(set(LAYOUT.values())) == len(LAYOUT)


@pytest.mark.parametrize("base", [0, 80, 65535, -1])
def test_a_port_base_out_of_range_is_one_line(base: int):
    with pytest.raises(Problem, match=f"--port-base {base}: choose one from 1024 to"):
        Ports(base)


def test_taken_ports_are_named_in_one_line():
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        ports = Ports(taken.getsockname()[1] - LAYOUT["chat"])
        with pytest.raises(Problem) as raised:
            ports.require_free(["chat"])
    assert str(raised.value) == (
        f"port {ports.port('chat')} (chat) is taken: stop what listens there, "
        "or choose other ports with --port-base N"
    )


def test_a_home_is_private_and_keeps_its_key(home: Home):
    assert home.root.stat().st_mode & 0o077 == 0
    assert home.keys_file.stat().st_mode & 0o077 == 0
    before = home.keys_file.read_bytes()
    home.prepare()
    assert home.keys_file.read_bytes() == before
    assert KeySet.load(home.keys_file).signing()


def test_home_is_where_the_environment_says(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("DESKWIRE_HOME", str(tmp_path / "there"))
    assert Home.find().root == tmp_path / "there"
    assert Home.find(tmp_path / "given").root == tmp_path / "given"


def test_a_home_that_cannot_be_used_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Problem, match=r"can't use .*file/home"):
        Home(tmp_path / "file" / "home").prepare()


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("deskwire_cli.machine.home.MIN_FREE_BYTES", 2**60)
    with pytest.raises(Problem, match=r"the disk of .* is full"):
        Home(tmp_path).prepare()


def test_a_broken_keys_file_is_one_line(home: Home):
    home.keys_file.write_text("{")
    with pytest.raises(Problem, match="is not JSON"):
        home.prepare()


def test_only_one_suite_per_home(home: Home):
    assert not home.is_locked()
    with home.locked():
        assert home.is_locked()
        with pytest.raises(Problem, match="already running"), home.locked():
            pass
    assert not home.is_locked()


def test_no_suite_runs(home: Home):
    with pytest.raises(Problem, match="start one with `deskwire up`"):
        load_suite(home)


def test_a_failed_write_leaves_the_file(tmp_path: Path):
    file = tmp_path / "state.json"
    write_atomically(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(file, "\udfff")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_a_process_starts_logs_and_stops(tmp_path: Path):
    process = Process("sleeper", SLEEPER, tmp_path / "log", pid_file=tmp_path / "pid")
    process.start()
    process.wait_ready(says(process.log, "up"), timeout=10)
    assert (tmp_path / "pid").read_text() == f"{process.pid}\n"
    process.stop()
    assert process.exit_code == -signal.SIGTERM
    assert "killed by SIGTERM" in process.how_it_ended()
    assert not (tmp_path / "pid").exists()


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path):
    process = Process("stubborn", STUBBORN, tmp_path / "log", grace=0.2)
    process.start()
    process.wait_ready(says(process.log, "up"), timeout=10)
    process.stop()
    assert process.exit_code == -signal.SIGKILL


def test_a_process_that_dies_says_its_last_words(tmp_path: Path):
    command = [sys.executable, "-c", "import sys; sys.exit('no disk')"]
    process = Process("short", command, tmp_path / "log")
    process.start()
    with pytest.raises(Problem, match="short ended with exit code 1: no disk"):
        process.wait_ready(lambda: "nothing", timeout=10)


def test_a_process_that_is_never_ready_says_what_is_missing(tmp_path: Path):
    process = Process("slow", SLEEPER, tmp_path / "log")
    process.start()
    try:
        with pytest.raises(Problem, match=r"slow is not ready after 0\.1 s: no word"):
            process.wait_ready(lambda: "no word", timeout=0.1)
    finally:
        process.stop()


def test_a_missing_program_is_one_line(tmp_path: Path):
    process = Process("absent", ["/nowhere/program"], tmp_path / "log")
    process.start()
    with pytest.raises(Problem, match="/nowhere/program: No such file or directory"):
        process.wait_ready(lambda: "nothing", timeout=10)


async def test_the_end_of_a_process_is_noticed(tmp_path: Path):
    process = Process("sleeper", SLEEPER, tmp_path / "log")
    process.start()
    ended = asyncio.create_task(process.ended())
    await process.ready(says(process.log, "up"), timeout=10)
    assert not ended.done()
    process.signal(signal.SIGKILL)
    assert await asyncio.wait_for(ended, 10) == -signal.SIGKILL
    process.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")
def test_a_process_dies_with_a_killed_parent(tmp_path: Path):
    program = tmp_path / "parent.py"
    program.write_text(
        "import sys, signal\n"
        "from pathlib import Path\n"
        "from deskwire_cli.machine.process import Process\n"
        f"process = Process('child', {SLEEPER!r}, Path({str(tmp_path / 'log')!r}))\n"
        "process.start()\n"
        "process.wait_ready(lambda: '' if 'up' in process.log.read_text() else 'not up', timeout=10)\n"
        "print(process.pid, flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        parent.kill()
    asyncio.run(eventually(lambda: not lives(child)))


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"databases": ["gateway=sqlite:///x"]}, "--database gateway=sqlite:///x: SERVICE=URL"),
        ({"databases": ["chat"]}, "--database chat: SERVICE=URL"),
        ({"databases": ["chat=oracle://x"]}, "unknown database 'oracle'"),
        ({"broker": "rabbit"}, "--broker rabbit: kafka or dev"),
        ({"kafka_address": "127.0.0.1:1"}, "leave --broker out"),
        ({"broker": "", "kafka_address": "nowhere"}, "--kafka nowhere: HOST:PORT"),
        ({"redis": "http://x"}, "--redis http://x: redis://HOST:PORT/0"),
    ],
)
def test_options_that_do_not_fit_are_one_line(home: Home, options, line: str):
    with pytest.raises(Problem) as raised:
        plan_of(home, **options)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_password_is_in_no_message(home: Home):
    with pytest.raises(Problem) as raised:
        plan_of(home, databases=["tickts=postgresql://me:secret@db/x"])
    assert "secret" not in str(raised.value)


def test_a_plan_listens_only_on_what_it_starts(home: Home):
    alone = plan_of(home, redis="redis://127.0.0.1:1/0").parts()
    assert not {"valkey", "kafka", "kafka-controller", "crm"} & set(alone)
    assert "crm" in plan_of(home, demo=True).parts()


def test_without_java_kafka_says_what_to_install(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setattr("deskwire_cli.machine.kafka.JAVA_FOLDERS", tmp_path)
    assert kafka.available() == (
        "Apache Kafka needs Java 17 or newer, no Java is here: install them (Debian: apt-get install "
        "openjdk-17-jre-headless maven), or use --broker dev"
    )


def test_without_maven_kafka_says_what_to_install(monkeypatch, tmp_path: Path):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'openjdk version \"21.0.1\" 2026-01-01' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("DESKWIRE_CACHE", str(tmp_path / "cache"))
    assert "comes through Maven, which is not here" in kafka.available()
    java.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_392\"' >&2\n")
    monkeypatch.setattr("deskwire_cli.machine.kafka.JAVA_FOLDERS", tmp_path / "none")
    assert "only Java 8 is here" in kafka.available()


def test_a_failed_fetch_leaves_nothing(monkeypatch, tmp_path: Path):
    maven = tmp_path / "mvn"
    maven.write_text("#!/bin/sh\necho '[ERROR] the network is away'\nexit 1\n")
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("DESKWIRE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(Problem, match="the network is away"):
        kafka.fetch()
    assert list((tmp_path / "cache").iterdir()) == []


def test_valkey_serves_and_stops(tmp_path: Path):
    port = free_port()
    process = valkey.process(tmp_path / "valkey", port=port, log=tmp_path / "log")
    process.start()
    process.wait_ready(valkey.probe(HOST, port), timeout=10)
    process.stop()
    # By itself: one that has to be killed has another code.
    assert process.exit_code == 0
    assert json.dumps(valkey.probe(HOST, port)()).startswith('"no answer at')
