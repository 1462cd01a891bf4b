"""`deskwire up --chat-shards`: several chat processes on one machine."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from deskwire_chat.store import partitions
from deskwire_cli.machine.home import Home
from support import eventually
from support.command import Command
from support.ports import free_base
from support.servers import DatabaseServer
from support.suite import owner_of_two


@pytest.fixture
def deskwire(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path / "home", free_base())
    yield command
    if Home(command.home).is_locked():
        command("down")


def test_a_file_has_one_writer(deskwire: Command, kafka: str, valkey: str) -> None:
    done = deskwire.up("--kafka", kafka, "--redis", valkey, "--chat-shards", "2")
    assert done.returncode == 1
    assert "--chat-shards 2: a SQLite file has one writer" in done.stderr


async def test_two_share_the_partitions(
    deskwire: Command, kafka: str, valkey: str, postgres: DatabaseServer
) -> None:
    url = postgres.fresh()
    done = deskwire.up(
        "--kafka", kafka, "--redis", valkey, "--chat-shards", "2", "--database", f"chat={url}"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code, status = deskwire.status()
    shards = [each for each in status["processes"] if each["name"].startswith("chat")]
    assert (code, [each["name"] for each in shards]) == (0, ["chat", "chat-1"])
    assert {each["health"] for each in shards} == {"SERVING"}
    assert len({each["address"] for each in shards}) == 2
    spread = Counter(owner_of_two(number) for number in partitions.PARTITION_IDS)
    await eventually(
        lambda: [owned(each["metrics"]) for each in shards] == [spread["chat-0"], spread["chat-1"]]
    )
    assert deskwire("down").returncode == 0
    postgres.drop(url)


def owned(metrics: str) -> int:
    """How many partitions a process says it has."""
    with urlopen(f"http://{metrics}/metrics", timeout=5) as answer:
        (value,) = re.findall(
            r"^deskwire_partitions_owned (\S+)$", answer.read().decode(), re.MULTILINE
        )
    return int(float(value))
