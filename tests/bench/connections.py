"""`make bench-connections`: idle, authenticated connections with heartbeats, and what one costs the gateway."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import harness
from harness import Running, say

GATEWAY: Final = ("gateway",)
#: Descriptors of a process are few (20,000 on this class of machine): so many visitors in one.
PER_PROCESS: Final = 15_000
#: A worker takes 18,000; the kernel spreads connections evenly, but not exactly.
PER_WORKER: Final = 17_000


class Crowds:
    """The generator's processes."""

    def __init__(self, running: Running, connections: int) -> None:
        count = -(-connections // PER_PROCESS)
        tenant = f"bench-{uuid.uuid4().hex[:8]}"
        self.processes = []
        for part in range(count):
            plan = {
                "url": running.suite.websocket,
                "keys_file": str(running.suite.keys_file),
                "tenant": tenant,
                "part": part,
                "visitors": connections // count + (part < connections % count),
                "address": f"127.0.0.{2 + part}",
            }
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, str(Path(__file__).with_name("crowd.py")), json.dumps(plan)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        self._answers()  # the tokens are made

    def ask(self) -> list[dict[str, Any]]:
        """Each process' answer to one line."""
        for each in self.processes:
            assert each.stdin is not None
            each.stdin.write("\n")
            each.stdin.flush()
        return self._answers()

    def _answers(self) -> list[dict[str, Any]]:
        return [json.loads(each.stdout.readline() or "null") for each in self.processes]  # type: ignore[union-attr]

    def end(self) -> None:
        """Close all connections."""
        for each in self.processes:
            assert each.stdin is not None
            each.stdin.close()
        for each in self.processes:
            each.wait(60)


@contextmanager
def crowd(running: Running, connections: int) -> Iterator[tuple[Crowds, float]]:
    """So many connected visitors, and the connects a second."""
    say(f"making {connections} tokens")
    crowds = Crowds(running, connections)
    try:
        say("connecting")
        started = time.perf_counter()
        connected = sum(each["connected"] for each in crowds.ask())
        seconds = time.perf_counter() - started
        assert connected == connections
        say(f"{connected} connected in {seconds:.1f} s")
        yield crowds, connected / seconds
    finally:
        crowds.end()


def total(answers: list[dict[str, Any]], name: str) -> float:
    """The sum over the generator's processes."""
    return sum(each[name] for each in answers)


def measure(connections: int, seconds: float) -> dict[str, Any]:
    """One row."""
    workers = -(-connections // PER_WORKER)
    with harness.a_suite(workers=workers) as running:
        time.sleep(3)
        empty = {name: running.memory_mb([name]) for name in ("gateway", "chat")}
        spent = {name: -running.cpu([name]) for name in ("gateway", "chat")}
        with crowd(running, connections) as (crowds, rate):
            spent = {name: spent[name] + running.cpu([name]) for name in spent}
            say("letting the first heartbeats pass")
            time.sleep(30)
            memory = {name: running.memory_mb([name]) for name in ("gateway", "chat")}
            before, cpu, started = crowds.ask(), running.cpu(GATEWAY), time.perf_counter()
            chat = running.cpu(["chat"])
            say(f"idle for {seconds:.0f} s")
            time.sleep(seconds)
            passed = time.perf_counter() - started
            gateway = running.cpu(GATEWAY) - cpu
            chat = running.cpu(["chat"]) - chat
            after = crowds.ask()
    codes = [each["closed"] for each in after if each["closed"]]
    if codes:
        say(f"close codes: {codes}")
    each = {name: (memory[name] - empty[name]) * 1e6 / connections for name in memory}
    return {
        "connections": connections,
        "workers": workers,
        "connects_per_second": round(rate, 1),
        "server_cpu_us_per_connect": round(spent["gateway"] / connections * 1e6, 1),
        "chat_cpu_us_per_connect": round(spent["chat"] / connections * 1e6, 1),
        "bytes_per_connection": round(each["gateway"]),
        "chat_bytes_per_connection": round(each["chat"]),
        "server_memory_mb": round(memory["gateway"], 1),
        "server_memory_empty_mb": round(empty["gateway"], 1),
        "idle_cpu_cores": round(gateway / passed, 3),
        "chat_idle_cpu_cores": round(chat / passed, 3),
        "heartbeats_per_second": round(
            (total(after, "pings") - total(before, "pings")) / passed, 1
        ),
        "generator_cpu_cores": round(
            (total(after, "cpu_seconds") - total(before, "cpu_seconds")) / passed, 3
        ),
        "lost": int(total(after, "lost")),
        "unanswered_pings": int(total(after, "unanswered")),
    }


def main() -> None:
    """Run it; exit 1 when a connection was lost, or a Ping unanswered until the next."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, nargs="+", default=[100_000])
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    rows = [measure(each, options.seconds) for each in options.connections]
    harness.record("connections", figures=rows[-1], parameters=vars(options), rows=rows)
    sys.exit(any(rows[-1][each] for each in ("lost", "unanswered_pings")))


if __name__ == "__main__":
    main()
