"""Private servers for tests: real ones, on free ports, with data that is thrown away; they end with the tests.

An existing server can replace each of them; its address comes from the environment:
DESKWIRE_TEST_POSTGRES_URL, DESKWIRE_TEST_MARIADB_URL (accounts that may create databases),
DESKWIRE_TEST_KAFKA (host:port), DESKWIRE_TEST_REDIS_URL.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pymysql
import pytest

from deskwire_cli.machine import devbroker, kafka, valkey
from deskwire_cli.machine import process as processes
from deskwire_cli.machine.ports import HOST
from deskwire_cli.machine.problem import Problem
from deskwire_cli.machine.process import Process
from support.ports import free_port

ACCOUNT = "deskwire"  # user and password
READY_SECONDS = 60.0


def unavailable(what: str, why: str) -> NoReturn:
    """Skip the test, with the reason; in CI a missing server is a failure."""
    text = f"{what} can't be had on this machine: {why}"
    if os.environ.get("CI") == "true":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


class DatabaseServer:
    """A database server and an account that may do everything: `host`, `port`, `user`, `password`."""

    def __init__(self, admin_url: str, execute: Callable[[str, str], Any], quote: str) -> None:
        self.admin_url = admin_url
        parts = urlsplit(admin_url)
        self.host = parts.hostname or HOST
        self.port = parts.port or 0
        self.user = parts.username or ""
        self.password = parts.password or ""
        self._execute = execute
        self._quote = quote
        self._made: set[str] = set()
        self._numbers = itertools.count(1)

    def _url(self, database: str) -> str:
        return urlunsplit(urlsplit(self.admin_url)._replace(path=f"/{database}"))

    def execute(self, statement: str, database: str = "") -> None:
        """Run and commit one statement in a database (default: the account's own)."""
        self._execute(self._url(database) if database else self.admin_url, statement)

    def url(self, database: str) -> str:
        """Return the URL of a database; create it the first time."""
        if database not in self._made:
            self._made.add(database)
            self.execute(f"CREATE DATABASE {self._quote}{database}{self._quote}")
        return self._url(database)

    def fresh(self) -> str:
        """Return the URL of a new, empty database; `drop` it when you are done."""
        return self.url(f"test_{os.getpid()}_{next(self._numbers)}")

    def drop(self, url: str) -> None:
        """Drop the database of a URL of `url` or `fresh`."""
        name = urlsplit(url).path.lstrip("/")
        force = " WITH (FORCE)" if self._quote == '"' else ""
        self.execute(f"DROP DATABASE {self._quote}{name}{self._quote}{force}")
        self._made.discard(name)

    def drop_all(self) -> None:
        """Drop all databases made here, which leaves an existing server as it was."""
        for name in sorted(self._made):
            with contextlib.suppress(psycopg.Error, pymysql.Error):
                self.drop(self._url(name))


def execute_postgres(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
        connection.execute(statement)  # type: ignore[arg-type]


def execute_mariadb(url: str, statement: str) -> None:
    parts = urlsplit(url)
    with pymysql.connect(
        host=parts.hostname,
        port=parts.port or 3306,
        user=parts.username,
        password=parts.password or "",
        database=parts.path.lstrip("/") or None,
        autocommit=True,
        connect_timeout=5,
    ) as connection:
        connection.cursor().execute(statement)


@contextmanager
def postgres_server(folder: Path, **options: str) -> Iterator[DatabaseServer]:
    """Run PostgreSQL with wal_level=logical and its normal durability; it is small unless `options` change that."""
    if given := os.environ.get("DESKWIRE_TEST_POSTGRES_URL"):
        server = DatabaseServer(given, execute_postgres, '"')
        yield server
        server.drop_all()
        return
    process, url = postgres_process(folder, **options)
    with running(process, postgres_probe(url)):
        yield DatabaseServer(url, execute_postgres, '"')


def postgres_process(folder: Path, **more: str) -> tuple[Process, str]:
    """Return a PostgreSQL that isn't started yet, and the URL of its account."""
    programs = newest_postgres()
    if programs is None:
        unavailable("PostgreSQL", "scripts/system-packages installs it on Debian as root")
    user = account("postgres")
    home = own_folder(folder / "postgres", user)
    data = home / "data"
    run_as(
        user, programs / "initdb", "-D", data, "-U", ACCOUNT, "-A", "trust", "-E", "UTF8",
        "--locale=C.UTF-8", "--no-sync",
    )  # fmt: skip
    port = free_port()
    options = {
        "listen_addresses": HOST,
        "port": port,
        "unix_socket_directories": home,
        "shared_buffers": "48MB",
        "max_connections": 200,
        "wal_level": "logical",
        "max_wal_senders": 10,
        "max_replication_slots": 10,
        "max_wal_size": "256MB",
        "log_min_messages": "warning",
        "timezone": "UTC",
        **more,
    }
    settings = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
    process = Process(
        name="postgres",
        command=[str(programs / "postgres"), "-D", str(data), *settings],
        log=folder / "postgres.log",
        user=user,
        stop_signal=processes.signal.SIGINT,  # "fast": it disconnects its clients
    )
    return process, f"postgresql://{ACCOUNT}:{ACCOUNT}@{HOST}:{port}/postgres"


def postgres_probe(url: str) -> processes.Probe:
    """Return a probe that is ready when the server answers a query."""
    return lambda: answer(execute_postgres, url)


@contextmanager
def mariadb_server(folder: Path, *options: str) -> Iterator[DatabaseServer]:
    """Run MariaDB with a full row binlog, as change capture needs it, and with options of a test's own."""
    if not options and (given := os.environ.get("DESKWIRE_TEST_MARIADB_URL")):
        server = DatabaseServer(given, execute_mariadb, "`")
        yield server
        server.drop_all()
        return
    daemon = find_program("mariadbd", "/usr/sbin")
    install = find_program("mariadb-install-db", "/usr/bin")
    if daemon is None or install is None:
        unavailable("MariaDB", "scripts/system-packages installs it on Debian as root")
    user = account("mysql")
    home = own_folder(folder / "mariadb", user)
    data = home / "data"
    run_as(
        user, install, "--no-defaults", f"--datadir={data}", "--skip-test-db",
        "--auth-root-authentication-method=normal",
    )  # fmt: skip
    grants = home / "accounts.sql"
    # Anonymous users would take precedence over '%' for connections from localhost.
    statements = [
        "DROP USER IF EXISTS ''@'localhost'",
        f"DROP USER IF EXISTS ''@'{os.uname().nodename}'",
    ]
    for host in ("%", "localhost"):
        statements.append(
            f"CREATE USER IF NOT EXISTS '{ACCOUNT}'@'{host}' IDENTIFIED BY '{ACCOUNT}'"
        )
        statements.append(f"GRANT ALL PRIVILEGES ON *.* TO '{ACCOUNT}'@'{host}' WITH GRANT OPTION")
    grants.write_text("".join(f"{statement};\n" for statement in statements))
    grants.chmod(0o644)
    port = free_port()
    process = Process(
        name="mariadb",
        command=[
            str(daemon), "--no-defaults", f"--datadir={data}", f"--port={port}", f"--bind-address={HOST}",
            f"--socket={home / 'mariadb.sock'}", f"--pid-file={home / 'mariadb.pid'}",
            f"--tmpdir={home}", f"--init-file={grants}", "--skip-name-resolve", "--max-connections=300",
            "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=48M", "--performance-schema=OFF",
            "--log-bin=binlog", "--binlog-format=ROW", "--binlog-row-image=FULL",
            "--binlog-row-metadata=FULL", "--server-id=1", "--gtid-strict-mode=1", "--sync-binlog=1",
            "--innodb-flush-log-at-trx-commit=1", "--default-time-zone=+00:00",
            "--character-set-server=utf8mb4", *options,
        ],
        log=folder / "mariadb.log",
        user=user,
    )  # fmt: skip
    url = f"mysql://{ACCOUNT}:{ACCOUNT}@{HOST}:{port}/mysql"
    with running(process, lambda: answer(execute_mariadb, url)):
        yield DatabaseServer(url, execute_mariadb, "`")


@contextmanager
def kafka_broker(folder: Path) -> Iterator[str]:
    """Run Apache Kafka; yield its bootstrap address."""
    if given := os.environ.get("DESKWIRE_TEST_KAFKA"):
        yield given
        return
    process, address = kafka_process(folder)
    with running(process, kafka.probe(address)):
        yield address


def kafka_process(folder: Path) -> tuple[Process, str]:
    """Return an Apache Kafka that isn't started yet, and its bootstrap address."""
    if why := kafka.available():
        unavailable("Apache Kafka", why)
    port = free_port()
    try:
        process = kafka.process(
            folder / "kafka",
            port=port,
            controller_port=free_port(),
            log=folder / "kafka.log",
            say=lambda line: print(line, file=sys.stderr),
        )
    except Problem as problem:
        unavailable("Apache Kafka", str(problem))
    return process, f"{HOST}:{port}"


@contextmanager
def development_broker(folder: Path) -> Iterator[str]:
    """Run the in-memory development broker; yield its bootstrap address."""
    address = folder / "devbroker.address"
    process = devbroker.process(address, log=folder / "devbroker.log")
    with running(process, devbroker.probe(address)):
        yield devbroker.address(address)


@contextmanager
def valkey_server(folder: Path) -> Iterator[str]:
    """Run Valkey; yield its URL."""
    if given := os.environ.get("DESKWIRE_TEST_REDIS_URL"):
        yield given
        return
    port = free_port()
    try:
        process = valkey.process(folder / "valkey", port=port, log=folder / "valkey.log")
    except Problem as problem:
        unavailable("Valkey", str(problem))
    with running(process, valkey.probe(HOST, port)):
        yield f"redis://{HOST}:{port}/0"


@contextmanager
def running(process: Process, probe: processes.Probe) -> Iterator[None]:
    """Start a process, wait until it is ready, and stop it after the block."""
    process.start()
    try:
        process.wait_ready(probe, timeout=READY_SECONDS)
        yield
    finally:
        process.stop()


def answer(execute: Callable[[str, str], None], url: str) -> str:
    try:
        execute(url, "SELECT 1")
    except (psycopg.Error, pymysql.Error) as error:
        return str(error).strip().splitlines()[0]
    return ""


def newest_postgres() -> Path | None:
    """Return the folder of the newest initdb and postgres; None: there is none."""
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    found = max(versions, key=lambda path: float(path.parts[-3]), default=None)
    if found is not None:
        return found.parent
    program = shutil.which("initdb")
    return Path(program).resolve().parent if program else None


def find_program(name: str, folder: str) -> Path | None:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{folder}")
    return Path(found) if found else None


def account(name: str) -> str:
    """Return the user to run a server as: these servers refuse to be root."""
    return name if os.geteuid() == 0 else ""


def own_folder(folder: Path, user: str) -> Path:
    folder.mkdir(mode=0o700)
    if user:
        shutil.chown(folder, user, user)
    return folder


def run_as(user: str, *command: object) -> None:
    """Run a program to its end as another user. If it fails, the test fails with its output."""
    child = Path(processes.__file__).with_name("child.py")
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(child), str(os.getpid()), user, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    if done.returncode != 0:
        pytest.fail(f"{command[0]} failed: {(done.stderr or done.stdout)[-2000:]}", pytrace=False)
