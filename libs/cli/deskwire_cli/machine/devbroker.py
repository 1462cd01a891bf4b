"""The development broker: librdkafka's mock cluster in a process of its own, for machines without Java.

`python -m deskwire_cli.machine.devbroker FILE` writes its address (host:port) into FILE and serves until SIGTERM.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Final

from confluent_kafka import Producer

from deskwire_cli.machine.home import write_atomically
from deskwire_cli.machine.ports import answers
from deskwire_cli.machine.process import Probe, Process

LIMITS: Final = (
    "This is the development broker, an in-memory stand-in for Apache Kafka: topics and offsets are gone when it "
    "stops, each partition keeps at most 100,000 records or about 5 MiB and then drops the oldest even if nobody "
    "read them, reading from a time is not possible, topics can't be configured, aborted transactions are visible, "
    "and its port changes with every start. Each service keeps what it published for seven days, in its table "
    "outbox_published. Nothing about durability can be concluded from it. With Java 17 and "
    "Maven installed `deskwire up` starts a real Apache Kafka; --kafka HOST:PORT uses one that exists."
)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    print(LIMITS, flush=True)
    owner = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "", "log_level": 0})
    metadata = owner.list_topics(timeout=10)
    broker = next(iter(metadata.brokers.values()))
    write_atomically(Path(sys.argv[1]), f"{broker.host}:{broker.port}")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


def process(address_file: Path, *, log: Path, pid_file: Path | None = None) -> Process:
    """Return the broker's process, not started. `address(address_file)` is known once it is ready."""
    address_file.unlink(missing_ok=True)
    return Process(
        name="devbroker",
        command=[sys.executable, "-m", "deskwire_cli.machine.devbroker", str(address_file)],
        log=log,
        pid_file=pid_file,
        grace=5.0,
    )


def address(address_file: Path) -> str:
    """Return host:port, "" while it isn't known."""
    return address_file.read_text().strip() if address_file.exists() else ""


def probe(address_file: Path) -> Probe:
    """Ready when it has an address that accepts connections."""

    def ask() -> str:
        found = address(address_file)
        if not found:
            return "it has no address yet"
        return "" if answers(found) else f"no answer at {found}"

    return ask


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
