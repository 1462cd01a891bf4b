"""`make bench-growth`: what a message costs as the number of connections grows, as a table and a plot."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import connections
import harness
import matplotlib as mpl
import message

mpl.use("agg")
import matplotlib.pyplot as plt


def main() -> None:
    """Run it; exit 1 when a message was refused, lost, doubled or reordered, or a connection lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--rates", type=int, nargs=1, default=[2_000])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--generators", type=int, default=2, help="processes that make the load")
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    parser.set_defaults(further=0)
    options = parser.parse_args()
    rows = [measure(number, options) for number in options.connections]
    path = harness.ROOT / "build" / "bench" / "growth.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    plot(rows, path)
    faults = message.faults(rows)
    figures = {
        "server_cpu_us_per_message": rows[-1]["server_cpu_us_per_message"],
        "connections": rows[-1]["connections"],
        "server_memory_mb": rows[-1]["server_memory_mb"],
        **faults,
    }
    harness.record("growth", figures=figures, parameters=vars(options), rows=rows)
    harness.say(f"plot in {path.relative_to(harness.ROOT)}")
    sys.exit(any(faults.values()))


def measure(number: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row: so many connections, of which some talk."""
    workers = -(-number // connections.PER_WORKER)
    with (
        harness.a_suite(workers=workers) as running,
        connections.crowd(running, number - 2 * options.pairs) as (crowds, _),
    ):
        (row,) = message.measure(running, options)
        lost = int(connections.total(crowds.ask(), "lost"))
        memory = running.memory_mb(message.SERVERS)
    row["lost"] += lost
    return {"connections": number, "workers": workers} | row | {"server_memory_mb": round(memory)}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """CPU a message and p99 over the number of connections."""
    figure, cpu = plt.subplots(figsize=(6, 3.5))
    numbers = [row["connections"] for row in rows]
    cpu.plot(numbers, [row["server_cpu_us_per_message"] for row in rows], "o-", color="tab:blue")
    cpu.set(xscale="log", xlabel="connections", ylabel="CPU of gateway and chat a message, µs")
    cpu.set_ylim(bottom=0)
    cpu.yaxis.label.set_color("tab:blue")
    p99 = cpu.twinx()
    p99.plot(numbers, [row["delivery_p99_ms"] for row in rows], "s--", color="tab:red")
    p99.set(ylabel="delivery p99, ms")
    p99.set_ylim(bottom=0)
    p99.yaxis.label.set_color("tab:red")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
