"""What comes in, and what becomes of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum
from functools import cached_property
from typing import Any, Final

from deskwire.adapters.v1 import system_adapter_service_pb2 as pb
from deskwire.events.v1 import adapter_pb2
from deskwire.events.v1.event_pb2 import Event

MAX_DETAIL: Final = 500
"""Characters of a text for people; the hub keeps no more."""


class Outcome(IntEnum):
    """What became of one event: deskwire.events.v1.PushOutcome."""

    DELIVERED = adapter_pb2.PUSH_OUTCOME_DELIVERED
    DUPLICATE = adapter_pb2.PUSH_OUTCOME_DUPLICATE
    SKIPPED = adapter_pb2.PUSH_OUTCOME_SKIPPED
    RETRY = adapter_pb2.PUSH_OUTCOME_RETRY
    AUTH_EXPIRED = adapter_pb2.PUSH_OUTCOME_AUTH_EXPIRED
    REJECTED = adapter_pb2.PUSH_OUTCOME_REJECTED
    RATE_LIMITED = adapter_pb2.PUSH_OUTCOME_RATE_LIMITED
    CONFLICT = adapter_pb2.PUSH_OUTCOME_CONFLICT
    UNKNOWN = adapter_pb2.PUSH_OUTCOME_UNKNOWN


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one event. `detail` is for people; `retry_after` in seconds, None: the hub decides."""

    outcome: Outcome
    detail: str = ""
    retry_after: float | None = None

    def message(self, event_id: str) -> pb.PushResult:
        """It, as the contract says it."""
        # The enum's stubs know no number that isn't written as its name.
        detail = self.detail[:MAX_DETAIL]
        result = pb.PushResult(event_id=event_id, outcome=int(self.outcome), detail=detail)  # type: ignore[arg-type]
        if self.retry_after is not None:
            result.retry_after.FromMicroseconds(max(0, int(self.retry_after * 1e6)))
        return result


DELIVERED: Final = Result(Outcome.DELIVERED)
"""The system has it."""
DUPLICATE: Final = Result(Outcome.DUPLICATE)
"""The system had it before."""
SKIPPED: Final = Result(Outcome.SKIPPED)
"""The system doesn't care for it."""


def retry(detail: str, after: float | None = None) -> Result:
    """Not now: again in `after` seconds, and later events of its subject wait."""
    return Result(Outcome.RETRY, detail, after)


def rate_limited(detail: str, after: float | None = None) -> Result:
    """The system takes nothing more for `after` seconds; no event is to blame."""
    return Result(Outcome.RATE_LIMITED, detail, after)


def rejected(detail: str) -> Result:
    """Never: it is a dead letter."""
    return Result(Outcome.REJECTED, detail)


def conflict(detail: str) -> Result:
    """The system has something newer or other: a dead letter, for people or a policy to decide."""
    return Result(Outcome.CONFLICT, detail)


def unknown(detail: str) -> Result:
    """Nobody can tell whether the system has it, for example after a time-out."""
    return Result(Outcome.UNKNOWN, detail)


@dataclass(frozen=True)
class Incoming:
    """One event. `json` is its JSON form as the hub sent it, `attempt` is 1 the first time."""

    event: Event
    json: str
    attempt: int = 1
    traceparent: str = ""

    @property
    def event_id(self) -> str:
        """Stable: the same event has it again."""
        return self.event.event_id

    @property
    def event_type(self) -> str:
        """Such as `customer_updated`."""
        return self.event.event_type

    @property
    def tenant_id(self) -> str:
        """Whose it is."""
        return self.event.tenant_id

    @property
    def subject(self) -> str:
        """What it is about; events of one subject come in order."""
        return self.event.subject

    @property
    def sequence(self) -> int:
        """+1 from one event of the subject to the next."""
        return self.event.sequence

    @cached_property
    def document(self) -> dict[str, Any]:
        """The JSON form, parsed; numbers with a point are Decimal, so that no digit is lost."""
        found = json.loads(self.json, parse_float=Decimal) if self.json else {}
        return found if isinstance(found, dict) else {}

    @property
    def data(self) -> dict[str, Any]:
        """What the event says."""
        found = self.document.get("data")
        return found if isinstance(found, dict) else {}
