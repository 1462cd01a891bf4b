"""Servers for all tests: started when the first test asks, private, and gone at the end, also of an interrupted run."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from deskwire_cli.launch import Launch, make_plan
from deskwire_cli.machine.home import Home
from deskwire_common.auth import KeySet, TokenSigner
from support import s3, servers
from support.folders import data_folder
from support.parallel import (  # noqa: F401 - hooks of pytest
    pytest_collection_modifyitems,
    pytest_xdist_auto_num_workers,
    pytest_xdist_make_scheduler,
)
from support.ports import free_base

# Otherwise each of the many processes that tests start compiles all that it imports: 1.7 s of a core.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# No example of a property is timed: on a busy machine that would fail by chance.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[Any],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that hangs says where: the stack of its thread is only the event loop's."""
    report = yield
    if call.excinfo is not None and "pytest-timeout" in str(call.excinfo.value):
        stacks = [_stack(task) for task in list(asyncio.tasks._all_tasks) if not task.done()]
        report.sections.append(("asyncio tasks", "\n\n".join(stacks)))
    return report


def _stack(task: asyncio.Task[Any]) -> str:
    """What a task waits for, all the way down; its own print_stack knows only the first coroutine."""
    lines = [task.get_name()]
    waits: Any = task.get_coro()
    while waits is not None:
        frame, inner = None, None
        for kind, on in (("cr", "await"), ("gi", "yieldfrom"), ("ag", "await")):
            frame = frame or getattr(waits, f"{kind}_frame", None)
            inner = inner or getattr(waits, f"{kind}_{on}", None)
        if frame is not None:
            code = frame.f_code
            lines.append(f"  {code.co_filename}:{frame.f_lineno} {code.co_qualname}")
        else:
            # A step of an async generator knows it, and doesn't say.
            inner = next(
                (each for each in gc.get_referents(waits) if inspect.isasyncgen(each)), None
            )
            if inner is None:
                lines.append(f"  {waits!r}")
        waits = inner
    return "\n".join(lines)


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    """Where the servers' data is."""
    with data_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def kafka(servers_folder: Path) -> Iterator[str]:
    """The bootstrap address of a real Apache Kafka."""
    with servers.kafka_broker(servers_folder) as bootstrap:
        yield bootstrap


@pytest.fixture(scope="session")
def devbroker(servers_folder: Path) -> Iterator[str]:
    """The bootstrap address of the in-memory development broker."""
    with servers.development_broker(servers_folder) as bootstrap:
        yield bootstrap


@pytest.fixture(scope="session")
def valkey(servers_folder: Path) -> Iterator[str]:
    """The URL of a Valkey server."""
    with servers.valkey_server(servers_folder) as url:
        yield url


@pytest.fixture(scope="session")
def postgres(servers_folder: Path) -> Iterator[servers.DatabaseServer]:
    """A PostgreSQL server: `postgres.url("name")`, `postgres.fresh()`."""
    with servers.postgres_server(servers_folder) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb(servers_folder: Path) -> Iterator[servers.DatabaseServer]:
    """A MariaDB server with a row binlog: `mariadb.url("name")`, `mariadb.fresh()`."""
    with servers.mariadb_server(servers_folder) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(servers_folder: Path) -> Iterator[s3.S3Server]:
    """A real S3-compatible server: `s3_server.settings("bucket")`."""
    with s3.s3_server(servers_folder) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh, empty database of each kind; the test runs once per kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.db'}"
        return
    name = "postgres" if request.param == "postgresql" else "mariadb"
    server: servers.DatabaseServer = request.getfixturevalue(name)
    url = server.fresh()
    yield url
    server.drop(url)


@pytest.fixture(scope="session")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JWK set with one signing key."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    KeySet.generate().save(path)
    return path


@pytest.fixture(scope="session")
def signer(keys_file: Path) -> TokenSigner:
    """Mints tokens that services with `keys_file` accept."""
    return TokenSigner(KeySet.load(keys_file))


@pytest.fixture
async def launch(
    tmp_path: Path, kafka: str, valkey: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Launch]:
    """All five services as processes, on SQLite, with the tests' Kafka and Valkey.

    SQLite files in `tmp_path` may be captured.
    """
    monkeypatch.setenv("DESKWIRE_SQLITE_ROOT", str(tmp_path))
    home = Home(tmp_path / "home")
    home.prepare()
    plan = make_plan(
        home,
        port_base=free_base(),
        demo=False,
        broker="",
        kafka_address=kafka,
        redis=valkey,
        databases=[],
    )
    running = Launch(plan)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()
