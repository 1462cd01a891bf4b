"""The timeline of a walk: what was seen when, and how long after its cause."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """A line of the timeline: what was seen, `seconds` after the start, `milliseconds` after its cause."""

    seconds: float
    milliseconds: float
    what: str


class Timeline:
    """The steps of one walk; `tell` is called with each when it is done."""

    def __init__(self, tell: Callable[[Step], None]) -> None:
        self.steps: list[Step] = []
        self._tell = tell
        self._began = self._cause = time.perf_counter()

    def cause(self) -> None:
        """Note that the cause of the next step happens now."""
        self._cause = time.perf_counter()

    def done(self, what: str, *, at: float | None = None) -> None:
        """Note a step that was seen now, or `at` a time of `time.perf_counter`."""
        seen = time.perf_counter() if at is None else at
        step = Step(round(seen - self._began, 3), round((seen - self._cause) * 1000, 1), what)
        self.steps.append(step)
        self._tell(step)


def show(step: Step) -> None:
    """Print one line of the timeline."""
    print(f"{step.seconds:8.3f} s {step.milliseconds:8.1f} ms  {step.what}", flush=True)
