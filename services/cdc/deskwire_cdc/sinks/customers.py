"""The customer sink: what the rows of a source say of customers goes to chat, as the source's own system."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from deskwire_cdc.clients import CustomerClient, CustomerRefused
from deskwire_cdc.domain.changes import NumberedChange
from deskwire_cdc.domain.customers import (
    CUSTOMER_FIELDS,
    CustomerCall,
    Refusal,
    customer_call,
    missing_fields,
    without,
)
from deskwire_cdc.domain.sources import Source
from deskwire_cdc.sinks.retry import Retrying, pauses
from deskwire_common import telemetry
from deskwire_common.errors import DeskwireError
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS

#: Customers that are written at the same time, per source; those of one row are in order.
CONCURRENT_CALLS: Final = 16


@dataclass(slots=True)
class TracedCall:
    """A customer call in the trace of its change."""

    call: CustomerCall
    traceparent: str


def traced_call(source: Source, numbered: NumberedChange) -> TracedCall | None:
    """Return what a change says of a customer, in the current trace; None when it says nothing."""
    call = customer_call(source, numbered)
    return None if call is None else TracedCall(call, telemetry.current_traceparent())


@dataclass(slots=True)
class Outcome:
    """What became of a batch's rows at chat, by subject."""

    refused: dict[str, Refusal] = field(default_factory=dict)
    passed: dict[str, frozenset[str]] = field(default_factory=dict)
    """The customer's fields that chat has taken of a row; all of a row that is gone."""

    def gone(self, subject: str) -> None:
        """Note that a row is gone, and with it what was wrong with it."""
        self.refused.pop(subject, None)
        self.passed[subject] = frozenset(CUSTOMER_FIELDS)

    def took(self, subject: str, fields: Iterable[str]) -> None:
        """Note what chat has taken of a row; an earlier refusal of nothing but that is over."""
        taken = self.passed[subject] = self.passed.get(subject, frozenset()).union(fields)
        before = self.refused.get(subject)
        if before is not None and taken.issuperset(before.fields):
            del self.refused[subject]

    def refuse(self, subject: str, fields: Sequence[str], why: str) -> None:
        """Note what chat has refused of a row; no `fields`: all of it."""
        before = self.refused.get(subject)
        whole = not fields or (before is not None and not before.fields)
        every = {*fields, *(before.fields if before else ())}
        self.passed[subject] = self.passed.get(subject, frozenset()).difference(fields)
        self.refused[subject] = Refusal(() if whole else tuple(sorted(every)), why)


class CustomerSink:
    """Writes the customers of one source."""

    def __init__(self, client: CustomerClient, retrying: Retrying) -> None:
        """`retrying` is called at every failure that is worth another try."""
        self._client = client
        self._retrying = retrying
        self._slots = asyncio.Semaphore(CONCURRENT_CALLS)

    async def write(
        self, source: Source, subject: str, calls: Sequence[TracedCall], outcome: Outcome
    ) -> None:
        """Return when chat has taken or refused all calls of a row, in their order; it may be away for any time.

        Fields that chat refuses are left out, and noted in `outcome`.
        """
        async with self._slots:
            for each in calls:
                with telemetry.span("cdc.upsert_customer", traceparent=each.traceparent):
                    taken = await self._taken(source, subject, each.call, outcome)
                    rest = None if taken is None else missing_fields(*taken)
                    if rest is not None:
                        await self._taken(source, subject, rest, outcome)

    async def _taken(
        self, source: Source, subject: str, call: CustomerCall, outcome: Outcome
    ) -> tuple[CustomerCall, dict[str, str]] | None:
        """Return what chat has taken of a call, and the customer's fields; None when that was nothing new."""
        left: CustomerCall | None = call
        while left is not None:
            try:
                known = await self._upsert(source, left)
            except CustomerRefused as error:
                get_logger().warning(
                    "customer_refused", source=source.aggregate_id, row=subject, reason=str(error)
                )
                outcome.refuse(subject, error.fields, _why(source, error))
                left = without(left, error.fields)
            else:
                outcome.took(subject, left.mask)
                return None if known is None else (left, known)
        return None

    async def _upsert(self, source: Source, call: CustomerCall) -> dict[str, str] | None:
        """Return the customer's fields; None when chat has taken this before. Raises CustomerRefused."""
        calls, again = METRICS.cdc_sync_calls, pauses()
        while True:
            try:
                fields = await self._client.upsert(source, call)
            except CustomerRefused as error:
                calls.labels(source.source_id, "refused").inc()
                if str(error):
                    raise
                return None
            except DeskwireError as error:
                calls.labels(source.source_id, "retried").inc()
                await self._retrying(error.message)
                await again.pause(at_least=error.retry_after or 0.0)
            else:
                calls.labels(source.source_id, "done").inc()
                return dict(fields)


def _why(source: Source, error: CustomerRefused) -> str:
    rule = source.customer_rule
    columns = [rule.columns[name] for name in error.fields] if rule is not None else []
    return f"column {', '.join(columns)}: {error}" if columns else str(error)
