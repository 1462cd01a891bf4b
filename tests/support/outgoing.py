"""Events on their way to a sink, without a broker."""

from __future__ import annotations

from typing import Any

from deskwire_common import events, exact, topics
from deskwire_common.clock import SystemClock, to_micros
from deskwire_common.events import DomainEvent
from deskwire_common.ids import RandomIds
from deskwire_events.sinks import Outgoing
from deskwire_events.spine import Carried

_IDS = RandomIds()


def outgoing(
    subject: str = "a",
    *,
    attempt: int = 1,
    tenant: str = "t",
    sequence: int = 1,
    event_id: str = "",
    **data: Any,
) -> Outgoing:
    """An external event with these data, as it goes out."""
    event = DomainEvent(
        event_id=event_id or _IDS.uuid7(),
        event_type="invoice_paid",
        tenant_id=tenant,
        subject=subject,
        sequence=sequence,
        occurred_at=to_micros(SystemClock().now()),
        trace_id="0af7651916cd43dd8448eb211c80319c",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        actor=events.system_actor(),
        origin="shop:main",
        correlation_id="",
        data=exact.json_object(data),
        topic=topics.EXTERNAL,
    )  # fmt: skip
    value, headers = events.encode(event), events.headers(event)
    carried = Carried(topics.EXTERNAL.name, 0, 0, subject.encode(), value, headers, 0)
    return Outgoing(carried, attempt, event.traceparent)
