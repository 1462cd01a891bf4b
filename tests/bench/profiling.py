"""Where a process' time goes: CPU by thread as the kernel counts it, and the main thread's by package, sampled."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console
from rich.table import Table

_PYSPY: Final = Path(sys.executable).with_name("py-spy")
_RATE: Final = 250
_PACKAGES: Final = (
    "deskwire_chat",
    "deskwire_gateway",
    "deskwire_common",
    "psycopg",
    "sqlalchemy",
    "grpc",
    "google/protobuf",
    "confluent_kafka",
    "prometheus_client",
    "picows",
    "opentelemetry",
)
_NATIVE: Final = "event loop, sockets, native grpc"


def profile(processes: Mapping[str, psutil.Process], seconds: float) -> list[dict[str, Any]]:
    """Watch processes for a while; one entry each."""
    with tempfile.TemporaryDirectory() as folder:
        before = {name: _threads(each.pid) for name, each in processes.items()}
        started = time.perf_counter()
        samplers = [
            subprocess.Popen(
                [
                    *(_PYSPY, "record", "--threads", "--format", "raw"),
                    *("--pid", str(each.pid), "--output", f"{folder}/{name}"),
                    *("--duration", str(int(seconds)), "--rate", str(_RATE)),
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for name, each in processes.items()
        ]
        for each in samplers:
            each.wait()
        passed = time.perf_counter() - started
        return [
            _entry(
                name,
                {
                    thread: (used - before[name].get(thread, 0.0)) / passed
                    for thread, used in _threads(each.pid).items()
                },
                Path(folder, name),
            )
            for name, each in processes.items()
        ]


def _threads(pid: int) -> dict[str, float]:
    """CPU seconds by the name of the thread; the main thread is `main`."""
    found: Counter[str] = Counter()
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        name = text[text.index("(") + 1 : text.rindex(")")]
        fields = text[text.rindex(")") + 2 :].split()
        name = "main" if stat.parent.name == str(pid) else name
        found[name] += (int(fields[11]) + int(fields[12])) / 100
    return dict(found)


def _entry(name: str, threads: Mapping[str, float], raw: Path) -> dict[str, Any]:
    packages: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for line in raw.read_text().splitlines() if raw.exists() else ():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if "MainThread" not in frames[0]:
            continue
        leaf = frames[-1]
        package = next((each for each in _PACKAGES if f"({each}" in leaf or f"/{each}" in leaf), "")
        if "asyncio/runners.py" in leaf:
            package = _NATIVE
        packages[package or "other Python"] += int(count)
        functions[leaf.rpartition(":")[0] + ")"] += int(count)
    samples = max(1, sum(packages.values()))
    return {
        "process": name,
        "cores": round(sum(threads.values()), 3),
        "threads": {
            thread: round(used, 3)
            for thread, used in sorted(threads.items(), key=lambda pair: -pair[1])
            if used >= 0.005
        },
        "main_thread": {each: round(n / samples, 3) for each, n in packages.most_common()},
        "functions": {each: round(n / samples, 3) for each, n in functions.most_common(20)},
    }


def show(entries: list[dict[str, Any]]) -> None:
    """Print a table per process."""
    for entry in entries:
        table = Table(title=f"{entry['process']}: {entry['cores']} cores")
        table.add_column("thread, cores")
        table.add_column("main thread by package")
        table.add_column("its functions")
        columns = [
            [f"{name}  {used:.3f}" for name, used in entry["threads"].items()],
            [f"{share:6.1%}  {name}" for name, share in entry["main_thread"].items()],
            [f"{share:6.1%}  {name}" for name, share in entry["functions"].items()],
        ]
        for row in range(max(map(len, columns))):
            table.add_row(*(each[row] if row < len(each) else "" for each in columns))
        Console().print(table)
