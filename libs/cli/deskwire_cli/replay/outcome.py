"""The outcome of a run, and its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from deskwire_cli.recorded.oddities import Balance
from deskwire_cli.recorded.tables import balance_table

FAILURES: Final = 10
"""How many of the dialogues that failed are named."""

_PROOF: Final = (
    *("acked", "stored", "on_kafka", "missing", "duplicates", "out_of_order", "failed"),
    *("seconds", "messages_per_second"),
)


def summary(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and max of seconds, in milliseconds."""
    ordered = sorted(values) or [0.0]

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 2)

    return {"p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "max": round(ordered[-1] * 1000, 2)}


@dataclass(slots=True)
class Outcome:
    """The outcome of a run; `report` is its --json form."""

    balance: Balance
    acked: int = 0
    stored: int = 0
    on_kafka: int | None = None
    missing: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    seconds: float = 0.0
    ack: list[float] = field(default_factory=list)
    delivery: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """The first FAILURES of the dialogues that weren't played to their end, and why."""
    failed: int = 0
    """How many dialogues those are."""

    def fail(self, why: str) -> None:
        """Count a dialogue that wasn't played to its end."""
        self.failed += 1
        if len(self.failures) < FAILURES:
            self.failures.append(why)

    @property
    def whole(self) -> bool:
        """Whether nothing is missing, twice or out of order."""
        return not (self.missing or self.duplicates or self.out_of_order)

    def report(self) -> dict[str, Any]:
        """The contract of `replay --json`."""
        return {
            **self.balance.report(),
            "acked": self.acked,
            "stored": self.stored,
            "on_kafka": self.on_kafka,
            "missing": self.missing,
            "duplicates": self.duplicates,
            "out_of_order": self.out_of_order,
            "failed": self.failed,
            "seconds": round(self.seconds, 3),
            "messages_per_second": round(self.acked / self.seconds, 1) if self.seconds else 0.0,
            "ack_ms": summary(self.ack),
            "delivery_ms": summary(self.delivery),
        }


def show(outcome: Outcome, *, dry_run: bool) -> None:
    """Print the tables of a run; after a `dry_run` only what the file holds, and what of it is left out."""
    console = Console()
    balance_table(console, outcome.balance, "what would be played" if dry_run else "replay")
    if dry_run:
        return
    report = outcome.report()
    counts = Table(title="proof", show_header=False)
    for name in _PROOF:
        value = report[name]
        counts.add_row(
            name.replace("_", " "), "not provable here" if value is None else f"{value:,}"
        )
    console.print(counts)
    latency = Table(title="latency, ms")
    for column in ("", "p50", "p95", "p99", "max"):
        latency.add_column(column, justify="right")
    for name in ("ack_ms", "delivery_ms"):
        latency.add_row(
            name.removesuffix("_ms"), *(f"{value:,.2f}" for value in report[name].values())
        )
    console.print(latency)
