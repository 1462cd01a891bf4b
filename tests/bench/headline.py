"""`make bench-headline`: a crowd of idle connections, and messages among some of them, durable and on Kafka."""

from __future__ import annotations

import argparse
import sys
import time

import connections
import harness
import message


def main() -> None:
    """Run it; exit 1 when a message was refused, lost, doubled or reordered, or a connection lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--rates", type=int, nargs="+", default=[3_000])
    parser.add_argument("--generators", type=int, default=2, help="processes that make the load")
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.set_defaults(further=0)
    options = parser.parse_args()
    workers = -(-options.connections // connections.PER_WORKER)
    with harness.a_suite(workers=workers) as running:
        idle = options.connections - 2 * options.pairs
        with connections.crowd(running, idle) as (crowds, rate):
            rows = message.measure(running, options)
            time.sleep(1)
            memory = running.memory_mb(message.SERVERS)
            lost = int(connections.total(crowds.ask(), "lost"))
    figures = message.figures_of(rows) | {
        "server_memory_mb": round(memory, 1),
        "connections": options.connections,
        "connections_lost": lost,
        "connects_per_second": round(rate, 1),
    }
    harness.record("headline", figures=figures, parameters=vars(options), rows=rows)
    sys.exit(any([lost, *message.faults(rows).values()]))


if __name__ == "__main__":
    main()
