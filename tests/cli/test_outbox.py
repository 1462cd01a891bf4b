"""`deskwire outbox`: what an operator sees of events that Kafka refuses, and does with them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import structlog
from typer.testing import CliRunner

from deskwire_cli.machine.problem import Problem
from deskwire_cli.main import app
from deskwire_common import topics
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.outbox import Outbox, Parking
from support.outbox import event, opened, outbox

T = TypeVar("T")


def inside(url: str, do: Callable[[Database, Outbox], Awaitable[T]]) -> T:
    async def work() -> T:
        async with opened(url) as db:
            return await do(db, outbox())

    return asyncio.run(work())


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """The command sends this process's logs to the stderr that it is given, which ends with the test."""
    config, root = structlog.get_config(), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.configure(**config)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A database in which the second of three events of a key was refused, and one of another."""
    found = f"sqlite:///{tmp_path / 'events.db'}"

    async def park(db: Database, box: Outbox) -> None:
        made = [event(topics.EXTERNAL, "a\x1b[2J", 1), event(topics.EXTERNAL, "a\x1b[2J", 2)]
        made.append(event(topics.EXTERNAL, "b", 1))

        async def work(uow: UnitOfWork) -> None:
            await box.add(uow, made)

        await db.run(work)
        first, second, third = await box.lowest(db, 10, 1 << 20, parked=False)
        reasons = {first.id: "MSG_SIZE_TOO_LARGE", third.id: "INVALID_RECORD"}
        await db.run(lambda uow: Parking(db, box).park(uow, reasons, [second.id]))

    inside(found, park)
    return found


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["outbox", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def shown(url: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("list", "--json", "--database", url))
    return found


def waiting(url: str) -> int:
    return inside(url, lambda db, box: box.pending(db))[0]


def test_parked_events_are_listed_with_their_reasons(url: str) -> None:
    first, second = shown(url)
    assert (first["reason"], first["behind"]) == ("MSG_SIZE_TOO_LARGE", 1)
    assert (second["key"], second["behind"]) == ("b", 0)
    table = run("list", "--database", url)
    assert first["event_id"] in table
    # A key is others' text.
    assert "\x1b" not in table
    assert "a\\u001b[2J" in table


def test_a_redriven_event_takes_its_key_along(url: str) -> None:
    first, second = shown(url)
    assert run("redrive", first["event_id"], "--database", url) == "2 events go on\n"
    assert [row["event_id"] for row in shown(url)] == [second["event_id"]]
    assert run("redrive", "--topic", topics.EXTERNAL.name, "--database", url) == "1 events go on\n"
    assert shown(url) == []
    assert waiting(url) == 3


def test_a_dropped_event_is_gone(url: str) -> None:
    first, second = shown(url)
    run("drop", first["event_id"], "--database", url)
    assert [row["event_id"] for row in shown(url)] == [second["event_id"]]
    assert waiting(url) == 1
    run("redrive", "--all", "--database", url)
    assert waiting(url) == 2


@pytest.mark.parametrize("words", [["redrive", "nobody"], ["drop", "nobody"]])
def test_an_event_that_is_not_parked_is_named(url: str, words: list[str]) -> None:
    with pytest.raises(Problem, match="nobody"):
        run(*words, "--database", url)


@pytest.mark.parametrize("words", [[], ["x", "--all"], ["--all", "--topic", "t"]])
def test_what_to_redrive_is_said_once(url: str, words: list[str]) -> None:
    result = CliRunner().invoke(app, ["outbox", "redrive", *words, "--database", url])
    assert result.exit_code == 2
    assert len(shown(url)) == 2


def test_a_database_that_is_away_is_one_line_without_its_password() -> None:
    with pytest.raises(Problem, match="doesn't answer") as caught:
        run("list", "--database", "postgresql://deskwire:s3cret@127.0.0.1:1/events")
    assert "s3cret" not in str(caught.value)
