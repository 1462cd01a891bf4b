"""The customer sink: what the rows of a source say of customers goes to chat, as the source's own system."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from deskwire_cdc.clients import CustomerClient, CustomerRefused
from deskwire_cdc.domain.changes import NumberedChange
from deskwire_cdc.domain.customers import CustomerCall, customer_call, missing_fields
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


class CustomerSink:
    """Writes the customers of one source."""

    def __init__(
        self, client: CustomerClient, retrying: Retrying, refused: Callable[[str], None]
    ) -> None:
        """`retrying` is called at every failure that is worth another try, `refused` at the others: they are left."""
        self._client = client
        self._retrying = retrying
        self._refused = refused
        self._slots = asyncio.Semaphore(CONCURRENT_CALLS)

    async def write(self, source: Source, calls: Sequence[TracedCall]) -> None:
        """Return when chat has taken or refused all calls of a row, in their order; it may be away for any time."""
        async with self._slots:
            for each in calls:
                with telemetry.span("cdc.upsert_customer", traceparent=each.traceparent):
                    known = await self._upsert(source, each.call)
                    rest = None if known is None else missing_fields(each.call, known)
                    if rest is not None:
                        await self._upsert(source, rest)

    async def _upsert(self, source: Source, call: CustomerCall) -> dict[str, str] | None:
        """Return the customer's fields; None when chat will never take this."""
        calls, again = METRICS.cdc_sync_calls, pauses()
        while True:
            try:
                fields = await self._client.upsert(source, call)
            except CustomerRefused as error:
                calls.labels(source.source_id, "refused").inc()
                if reason := str(error):
                    self._refused(f"a customer was refused, request {call.request_id}: {reason}")
                    get_logger().warning(
                        "customer_refused", source=source.aggregate_id, reason=reason
                    )
                return None
            except DeskwireError as error:
                calls.labels(source.source_id, "retried").inc()
                await self._retrying(error.message)
                await again.pause(at_least=error.retry_after or 0.0)
            else:
                calls.labels(source.source_id, "done").inc()
                return dict(fields)
