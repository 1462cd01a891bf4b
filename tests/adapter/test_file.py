"""The file adapter: what is DELIVERED is on the disk, whole lines, in the tenant's own folder."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deskwire.events.v1.event_pb2 import Event
from deskwire_adapter import CredentialsRefused, Incoming, Login, Outcome
from deskwire_adapter.conformance import Grade, Subject, examine
from deskwire_adapter.shipped.file import FileAdapter


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.setenv("DESKWIRE_ADAPTER_ROOT", str(folder))
    return folder


Make = Callable[[], FileAdapter]


@pytest.fixture
def make() -> Iterator[Make]:
    """Adapters that are closed at the end."""
    made: list[FileAdapter] = []

    def made_one() -> FileAdapter:
        made.append(FileAdapter())
        return made[-1]

    yield made_one
    for each in made:
        each.close()


def events(count: int, size: int = 10) -> list[Incoming]:
    return [
        Incoming(Event(event_id=f"e{n}"), json.dumps({"event_id": f"e{n}", "x": "x" * size}))
        for n in range(count)
    ]


def push(
    adapter: FileAdapter, some: list[Incoming], tenant: str = "shop", **config: Any
) -> list[str]:
    session: Any = adapter.auth(Login(tenant, {"name": "events", **config}))
    results: Any = adapter.push(session, some)
    return [each.outcome.name for each in results]


def lines(path: Path) -> list[str]:
    return [json.loads(line)["event_id"] for line in path.read_text().split("\n")[:-1]]


def test_lines_are_as_they_came_and_on_the_disk(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(number: int) -> None:
        synced.append(os.fstat(number).st_size)
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    assert push(make(), events(3)) == ["DELIVERED"] * 3
    path = root / "shop" / "events.jsonl"
    assert path.read_text() == "".join(f"{each.json}\n" for each in events(3))
    assert synced[-1] == path.stat().st_size
    assert path.stat().st_mode & 0o077 == 0


def test_files_are_rotated_and_the_oldest_go(make: Make, root: Path) -> None:
    adapter = make()
    for _ in range(6):
        push(adapter, events(3, 1_500), max_bytes=5_000, keep=2)
    older = sorted((root / "shop").glob("events.jsonl.*"))
    assert len(older) == 2
    # No line is in two parts.
    for path in [*older, root / "shop" / "events.jsonl"]:
        assert lines(path) == ["e0", "e1", "e2"]
    assert push(adapter, events(1, 6_000), max_bytes=5_000) == ["REJECTED"]


def test_the_part_of_a_line_that_a_crash_left_is_cut_off(make: Make, root: Path) -> None:
    push(make(), events(2))
    path = root / "shop" / "events.jsonl"
    with path.open("a") as file:
        file.write('{"event_id": "torn' + "x" * 200_000)
    push(make(), events(1))
    assert lines(path) == ["e0", "e1", "e0"]


def test_a_full_disk_leaves_no_part_of_a_line(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make()
    push(adapter, events(1))

    def full(_number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        session: Any = adapter.auth(Login("shop", {"name": "events"}))
        results: Any = adapter.push(session, events(2))
        assert {(each.outcome, each.retry_after) for each in results} == {(Outcome.RETRY, 60.0)}
    assert push(adapter, events(1)) == ["DELIVERED"]
    assert lines(root / "shop" / "events.jsonl") == ["e0", "e0"]


@pytest.mark.parametrize("tenant", ["..", ".", "a/b", "", "a\x00b", "ä"])
def test_tenants_that_are_no_names_of_folders(make: Make, tenant: str) -> None:
    with pytest.raises(CredentialsRefused, match="can't be the name"):
        push(make(), events(1), tenant)


def test_links_lead_nowhere(
    make: Make, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "linked").symlink_to(outside)
    with pytest.raises(CredentialsRefused, match="is a link"):
        push(make(), events(1), "linked")
    (root / "shop").mkdir()
    (root / "shop" / "events.jsonl").symlink_to(outside / "file")
    with pytest.raises(CredentialsRefused, match="is a link"):
        push(make(), events(1))
    # One that came between the look and the opening.
    monkeypatch.setattr(Path, "is_symlink", lambda _self: False)
    assert push(make(), events(1)) == ["RETRY"]
    assert list(outside.iterdir()) == []
    monkeypatch.delenv("DESKWIRE_ADAPTER_ROOT")
    with pytest.raises(CredentialsRefused, match="DESKWIRE_ADAPTER_ROOT is unset"):
        push(make(), events(1))


async def test_it_conforms_and_outlives_kill_9(root: Path) -> None:
    report = await examine(Subject("python:file", config='{"name": "events"}'))
    assert {each.trial: each.text for each in report.findings if each.grade is Grade.FAILED} == {}
    found = {each.trial: each.grade for each in report.findings}
    assert found["restart"] is Grade.PASSED
    # Every line of it is whole.
    assert len(lines(root / "conformance" / "events.jsonl")) > 100
