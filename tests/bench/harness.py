"""What benches share: a suite of their own, CPU by process, the machine, and the file with the figures."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Self

import psutil
from rich.console import Console
from rich.table import Table

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from deskwire_cli.suite import Suite, load_suite  # noqa: E402 - after the path
from deskwire_common.db import Database, durability, is_durable  # noqa: E402 - after the path
from support import servers  # noqa: E402 - after the path
from support.ports import free_base  # noqa: E402 - after the path

_DESKWIRE: Final = Path(sys.executable).with_name("deskwire")
_WAL_FILES: Final = 64
"""As many as max_wal_size allows."""


@dataclass(frozen=True, slots=True)
class Running:
    """A suite, and the processes of its services by name."""

    suite: Suite
    processes: Mapping[str, psutil.Process]

    def cpu(self, names: Sequence[str]) -> float:
        """CPU seconds that some processes have used."""
        total = 0.0
        for process in self._family(names):
            times = process.cpu_times()
            total += times.user + times.system
        return total

    def memory_mb(self, names: Sequence[str]) -> float:
        """Proportional set size of some processes: what they would give back."""
        return sum(_pss(process.pid) for process in self._family(names)) / 1e6

    def busiest(self, name: str) -> psutil.Process:
        """The process of a service that has used the most CPU: of the gateway, a worker."""
        return max(self._family([name]), key=lambda each: sum(each.cpu_times()[:2]))

    def _family(self, names: Sequence[str]) -> list[psutil.Process]:
        """Processes with their workers."""
        parents = [self.processes[name] for name in names]
        return parents + [child for each in parents for child in each.children(recursive=True)]


def _pss(pid: int) -> int:
    """Bytes: shared pages count by the number of processes that share them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel says nothing of Pss")


@contextmanager
def a_suite(*, database: str = "postgresql", workers: int = 1) -> Iterator[Running]:
    """The five services with Apache Kafka and Valkey, durable as in production.

    `database`: a private PostgreSQL, or `sqlite` files.
    """
    # A bench that is told to stop takes its servers along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deskwire-bench-")))
        folder.chmod(0o711)
        home = folder / "home"
        environment = {**os.environ, "DESKWIRE_HOME": str(home)}
        say("starting the databases, Kafka and the services")
        command = [str(_DESKWIRE), "up", "-d", "--no-demo", "--port-base", str(free_base())]
        command += ["--gateway-workers", str(workers)]
        if database == "postgresql":
            # What PostgreSQL itself begins with; the tests have less.
            server = stack.enter_context(
                servers.postgres_server(folder, shared_buffers="128MB", max_wal_size="1GB")
            )
            make_wal_files(server)
            for service in ("chat", "tickets", "events", "cdc"):
                command += ["--database", f"{service}={server.url(f'bench_{service}')}"]
        down = [str(_DESKWIRE), "down"]
        stack.callback(
            lambda: subprocess.run(down, env=environment, check=False, stdout=sys.stderr)
        )
        subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
        status = json.loads(
            subprocess.run(
                [str(_DESKWIRE), "status", "--json"],
                env=environment,
                check=True,
                capture_output=True,
            ).stdout
        )
        processes = {
            each["name"]: psutil.Process(each["pid"]) for each in status["processes"] if each["pid"]
        }
        urls = [server.url("bench_chat")] if database == "postgresql" else _files(home)
        for url in urls:
            asyncio.run(refuse_what_is_not_durable(url))
        yield Running(load_suite(home), processes)


def _files(home: Path) -> list[str]:
    return [f"sqlite:///{file}" for file in sorted(home.rglob("*.db"))]


async def refuse_what_is_not_durable(url: str) -> None:
    """Say what a database promises about a power cut. Raises AssertionError when a commit wouldn't survive it."""
    db = await Database.open(url)
    try:
        report = await durability(db)
    finally:
        await db.close()
    say(f"durability: {report}")
    if not is_durable(report):
        raise AssertionError(f"a figure of a database that may forget is worth nothing: {report}")


def make_wal_files(server: servers.DatabaseServer) -> None:
    """Give a new PostgreSQL the files for its log that one in use has, since it uses them again after checkpoints.

    Otherwise it makes one every three seconds, 16 MiB of zeros, and the commit that needs it waits for the disk.
    """
    server.execute(
        "SELECT pg_logical_emit_message(false, 'warm', ''), pg_switch_wal()"
        f" FROM generate_series(1, {_WAL_FILES})"
    )
    server.execute("CHECKPOINT")


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


class Speedometer:
    """How fast a core and the disk are while something runs, as neighbours take their part; measured on a thread."""

    def __init__(self) -> None:
        self._samples: list[float] = []
        self._syncs: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        with tempfile.TemporaryFile(buffering=0) as file:
            while not self._stop.wait(0.2):
                started, total = time.thread_time(), 0
                for number in range(20_000):
                    total += number
                self._samples.append((time.thread_time() - started) * 50)
                file.write(bytes(8_192))
                began = time.perf_counter()
                os.fdatasync(file.fileno())
                self._syncs.append(time.perf_counter() - began)

    @property
    def million_additions_ms(self) -> float:
        """CPU milliseconds of a million additions, the median."""
        return round(statistics.median(self._samples) * 1000, 1) if self._samples else 0.0

    @property
    def slowest_sync_ms(self) -> float:
        """The longest that the disk took to take 8 KiB for good, in milliseconds; every commit waits for that."""
        return round(max(self._syncs, default=0.0) * 1000, 1)


def speed() -> dict[str, float]:
    """Milliseconds of a million additions in Python, now: what neighbours leave of a shared core varies by half."""
    seconds = []
    for _ in range(8):
        started, total = time.perf_counter(), 0
        for number in range(1_000_000):
            total += number
        seconds.append(time.perf_counter() - started)
    return {"best": round(min(seconds) * 1000), "worst": round(max(seconds) * 1000)}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "million_additions_ms": speed(),
    }


def record(
    name: str,
    *,
    figures: Mapping[str, Any],
    parameters: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Print the table of a bench, and write build/bench/<name>.json."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    document = {
        "bench": name,
        "figures": figures,
        "rows": list(rows),
        "parameters": parameters,
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            **{
                each: version(each)
                for each in ("grpcio", "protobuf", "picows", "confluent-kafka", "psycopg")
            },
        },
        "commit": commit,
    }
    path = ROOT / "build" / "bench" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
    console = Console()
    table = Table(title=f"bench {name}", show_header=False)
    for _ in range(len(rows) + 1):
        table.add_column(justify="right")
    for figure in rows[0]:
        table.add_row(figure.replace("_", " "), *(_shown(row[figure]) for row in rows))
    console.print(table)
    of = document["machine"]
    loop = of["million_additions_ms"]
    console.print(
        f"{of['cores']} cores ({of['cpu']}), {of['memory_gib']} GiB, load {of['load_before']}, "
        f"a million additions {loop['best']}-{loop['worst']} ms; commit {commit}; "
        f"figures in {path.relative_to(ROOT)}"
    )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:,}"
