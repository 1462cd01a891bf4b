"""`make bench-message`: visitor → gateway → chat → PostgreSQL → agent, and Kafka beside it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import profiling
from harness import Running, say

from deskwire_cli.replay import summary

SERVERS = ("gateway", "chat")


def measure(running: Running, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per rate."""
    say(f"connecting {options.pairs} pairs from {options.generators} processes")
    with load(running, options) as parts:
        answers(parts)
        rows = [step(running, parts, options, rate) for rate in options.rates]
        while options.further and is_good(rows[-1]):
            rows.append(step(running, parts, options, rows[-1]["rate_asked"] + options.further))
    return rows


@contextmanager
def load(running: Running, options: argparse.Namespace) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of the load generator, each with its share of the pairs and an address of its own."""
    tenant = f"bench-{uuid.uuid4().hex[:8]}"
    parts: list[subprocess.Popen[str]] = []
    try:
        for part in range(options.generators):
            plan = {
                "url": running.suite.websocket,
                "chat": running.suite.chat,
                "keys_file": str(running.suite.keys_file),
                "address": f"127.0.0.{part + 20}",
                # Of its own: routing gives a visitor any agent of the tenant.
                "tenant": f"{tenant}-{part}",
                "part": part,
                "pairs": len(range(part, options.pairs, options.generators)),
                "seconds": options.seconds,
            }
            command = [sys.executable, str(Path(__file__).with_name("load.py")), json.dumps(plan)]
            parts.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
        yield parts
    finally:
        for each in parts:
            each.kill()
            each.wait()


def answers(parts: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """The next line of every part."""
    lines = [each.stdout.readline() for each in parts if each.stdout is not None]
    if not all(lines):
        raise SystemExit("the load generator failed")
    return [json.loads(line) for line in lines]


def step(
    running: Running, parts: list[subprocess.Popen[str]], options: argparse.Namespace, rate: int
) -> dict[str, Any]:
    """Send at one rate."""
    for each in parts:
        assert each.stdin is not None
        each.stdin.write(f"{rate / len(parts)}\n")
        each.stdin.flush()
    answers(parts)
    say(f"sending {rate} messages a second for {options.seconds:g} s")
    cpu = running.cpu(SERVERS)
    profiles: list[dict[str, Any]] = []
    with harness.Speedometer() as speed:
        if options.profile:
            watched = {each: running.busiest(each) for each in SERVERS}
            profiles = profiling.profile(watched, options.seconds - 2)
        results = answers(parts)
    used = running.cpu(SERVERS) - cpu
    profiling.show(profiles)
    row = row_of(rate, results) | {
        "server_cpu_us_per_message": round(used / max(1, total(results, "sent")) * 1e6, 1),
        "server_cpu_cores": round(used / max(each["seconds"] for each in results), 2),
        "generator_cpu_cores": round(total(results, "generator_cpu_cores"), 2),
        "million_additions_ms": speed.million_additions_ms,
        "slowest_sync_ms": speed.slowest_sync_ms,
    }
    if heads := total(results, "heads"):
        say(f"{heads} Heads: the server couldn't prove that nothing was missed")
    if row["refused"]:
        say(f"{row['refused']} refusals, the last: {results[0]['last_error']}")
    say(f"{rate}/s: delivery p50 {row['delivery_p50_ms']} ms, p99 {row['delivery_p99_ms']} ms")
    return row


def total(results: list[dict[str, Any]], name: str) -> Any:
    """The sum of a figure over the parts."""
    return sum(each[name] for each in results)


def row_of(rate: int, results: list[dict[str, Any]]) -> dict[str, Any]:
    """What all parts saw together."""
    ack, delivery = (
        summary([each for result in results for each in result[name]])
        for name in ("ack", "delivery")
    )
    seconds = max(each["seconds"] for each in results)
    refused = total(results, "refused")
    return {
        "rate_asked": rate,
        "messages_per_second": round(total(results, "received") / seconds, 1),
        "ack_p50_ms": ack["p50"],
        "ack_p99_ms": ack["p99"],
        **{f"delivery_{name}_ms": delivery[name] for name in ("p50", "p95", "p99", "max")},
        "refused": refused,
        "lost": total(results, "sent") - total(results, "received") - refused,
        "duplicates": total(results, "duplicates"),
        "out_of_order": total(results, "out_of_order"),
    }


def main() -> None:
    """Run it; exit 1 when something was lost. What is refused for now, at too high a rate, clients send again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rates", type=int, nargs="+", default=[1_000, 3_000, 5_000, 10_000])
    parser.add_argument(
        "--further", type=int, default=2_500, help="go on in such steps to the rate that fails"
    )
    parser.add_argument("--database", choices=["postgresql", "sqlite"], default="postgresql")
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    parser.add_argument("--workers", type=int, default=1, help="gateway processes")
    parser.add_argument("--generators", type=int, default=2, help="processes that make the load")
    options = parser.parse_args()
    with harness.a_suite(database=options.database, workers=options.workers) as running:
        rows = measure(running, options)
        memory = round(running.memory_mb(SERVERS), 1)
    figures = figures_of(rows) | {"server_memory_mb": memory, "connections": 2 * options.pairs}
    harness.record("message", figures=figures, parameters=vars(options), rows=rows)
    sys.exit(1 if figures["lost"] else 0)


def is_good(row: dict[str, Any]) -> bool:
    """Whether a rate was kept as was promised."""
    return row["delivery_p99_ms"] < 200 and not row["lost"] and not row["refused"]


def figures_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What counts: the highest rate that was kept with a p99 under 200 ms, and every fault of all rates."""
    good = [row for row in rows if is_good(row)]
    best = good[-1] if good else rows[0]
    return {
        "messages_per_second": best["messages_per_second"],
        "ack_ms": {"p50": best["ack_p50_ms"], "p99": best["ack_p99_ms"]},
        "delivery_ms": {name: best[f"delivery_{name}_ms"] for name in ("p50", "p95", "p99", "max")},
        "server_cpu_us_per_message": best["server_cpu_us_per_message"],
        "server_cpu_cores": best["server_cpu_cores"],
        **faults(rows),
    }


def faults(rows: list[dict[str, Any]]) -> dict[str, int]:
    """What went wrong at all rates together."""
    return {
        name: sum(row[name] for row in rows)
        for name in ("refused", "lost", "duplicates", "out_of_order")
    }


if __name__ == "__main__":
    main()
