"""The examination: trials one after the other, and what they found."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from deskwire_adapter.conformance.peer import Fault, Peer
from deskwire_adapter.conformance.subject import NotThere, Subject
from deskwire_adapter.conformance.trials import TRIALS, Skipped, Trial, Warned


class Grade(StrEnum):
    """How a trial went."""

    PASSED = "passed"
    WARNED = "warned"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One trial: its name, how it went, and what was seen; `seconds` it took."""

    trial: str
    grade: Grade
    text: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """All trials of one adapter."""

    target: str
    adapter: str
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(each.grade is not Grade.FAILED for each in self.findings)

    def as_json(self) -> dict[str, Any]:
        """It, as JSON."""
        return {
            "target": self.target,
            "adapter": self.adapter,
            "passed": self.passed,
            "trials": [asdict(each) for each in self.findings],
        }


async def examine(subject: Subject, only: Sequence[str] = ()) -> Report:
    """Play all trials, or `only` those of these names. Takes seconds to a minute. Raises NotThere.

    The system behind the adapter gets some hundred events about subjects whose names begin with `conformance-`: don't
    point it at what people work with.
    """
    try:
        await subject.begin()
        adapter = ""
        findings = []
        for trial in TRIALS:
            if only and trial.name not in only:
                continue
            findings.append(await _play(trial, subject))
            if trial.name == "schema":
                adapter, subject.event_type = await _introduced(subject)
        return Report(subject.target, adapter, tuple(findings))
    finally:
        await subject.end()


async def _introduced(subject: Subject) -> tuple[str, str]:
    peer = Peer(subject)
    try:
        schema = await peer.schema()
    except Fault:
        return "", subject.event_type
    finally:
        await peer.__aexit__(None, None, None)
    types = list(schema.event_types)
    return schema.adapter, subject.event_type or (types[0] if types else "")


async def _play(trial: Trial, subject: Subject) -> Finding:
    started = time.monotonic()
    try:
        grade, text = Grade.PASSED, await trial.play(subject)
    except Skipped as reason:
        grade, text = Grade.SKIPPED, str(reason)
    except Warned as reason:
        grade, text = Grade.WARNED, str(reason)
    except (Fault, NotThere) as fault:
        grade, text = Grade.FAILED, str(fault)
    return Finding(trial.name, grade, text, round(time.monotonic() - started, 3))
