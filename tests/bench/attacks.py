"""`make bench-attacks`: what other tenants notice of an attack; asked for is a p99 of at most twice the quiet one."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import message
from harness import Running, say

KINDS = ("typing", "read", "sync", "openings", "connects")


@contextmanager
def attacking(running: Running, kind: str, seconds: float) -> Iterator[None]:
    """Attack while the block runs; nothing for an empty kind."""
    if not kind:
        yield
        return
    plan = {
        "kind": kind,
        "url": running.suite.websocket,
        "keys_file": str(running.suite.keys_file),
        "seconds": seconds,
    }
    script = Path(__file__).with_name("attacker.py")
    process = subprocess.Popen([sys.executable, str(script), json.dumps(plan)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure(running: Running, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row undisturbed, and one with each attack; the ratio is to the undisturbed row just before."""
    rows = []
    with message.load(running, options) as parts:
        message.answers(parts)
        for kind in options.attacks:
            pair = []
            for each in ("", kind):
                say(f"{each or 'nobody'} attacks")
                with attacking(running, each, options.seconds + 10):
                    pair.append(message.step(running, parts, options, options.rates[0]))
            rows.append(row_of(kind, *pair))
    return rows


def row_of(kind: str, quiet: dict[str, Any], attacked: dict[str, Any]) -> dict[str, Any]:
    """What counts of an undisturbed row and an attacked one."""
    names = ("ack_p99_ms", "delivery_p99_ms")
    return {
        "attack": kind,
        **{f"undisturbed_{name}": quiet[name] for name in names},
        **{f"attacked_{name}": attacked[name] for name in names},
        "ratio_of_ack_p99": round(attacked["ack_p99_ms"] / quiet["ack_p99_ms"], 2),
        **{name: attacked[name] for name in ("lost", "refused", "duplicates", "out_of_order")},
        "million_additions_ms": attacked["million_additions_ms"],
        "slowest_sync_ms": attacked["slowest_sync_ms"],
    }


def main() -> None:
    """Run it; exit 1 when another tenant lost something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rates", type=int, nargs=1, default=[500], help="messages of the others")
    parser.add_argument("--attacks", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--workers", type=int, default=1, help="gateway processes")
    options = parser.parse_args()
    options.generators, options.profile = 1, False
    with harness.a_suite(workers=options.workers) as running:
        rows = measure(running, options)
    figures = {each["attack"]: each["ratio_of_ack_p99"] for each in rows}
    harness.record("attacks", figures=figures, parameters=vars(options), rows=rows)
    sys.exit(1 if any(each["lost"] or each["refused"] for each in rows) else 0)


if __name__ == "__main__":
    main()
