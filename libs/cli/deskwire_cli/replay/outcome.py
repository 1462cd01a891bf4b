"""The outcome of a run, and its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table


def summary(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and max of seconds, in milliseconds."""
    ordered = sorted(values) or [0.0]

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 2)

    return {"p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "max": round(ordered[-1] * 1000, 2)}


@dataclass(slots=True)
class Outcome:
    """The outcome of a run; `report` is its --json form."""

    dialogues: int
    turns: int
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

    @property
    def whole(self) -> bool:
        """Whether nothing is missing, twice or out of order."""
        return not (self.missing or self.duplicates or self.out_of_order)

    def report(self) -> dict[str, Any]:
        """The contract of `replay --json`."""
        return {
            "dialogues": self.dialogues,
            "turns": self.turns,
            "acked": self.acked,
            "stored": self.stored,
            "on_kafka": self.on_kafka,
            "missing": self.missing,
            "duplicates": self.duplicates,
            "out_of_order": self.out_of_order,
            "seconds": round(self.seconds, 3),
            "messages_per_second": round(self.acked / self.seconds, 1) if self.seconds else 0.0,
            "ack_ms": summary(self.ack),
            "delivery_ms": summary(self.delivery),
        }


def show(outcome: Outcome) -> None:
    """Print the tables of a run."""
    report = outcome.report()
    console = Console()
    counts = Table(title="replay", show_header=False)
    for name, value in report.items():
        if not isinstance(value, dict):
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
