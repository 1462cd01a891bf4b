"""The hub's side of one connection: calls whose answers are checked, each one."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import grpc

from deskwire.adapters.v1 import system_adapter_service_pb2 as pb
from deskwire.adapters.v1 import system_adapter_service_pb2_grpc
from deskwire.common.v1.json_value_pb2 import JsonObject, JsonValue
from deskwire.events.v1.event_pb2 import Event
from deskwire_adapter.conformance.subject import Subject
from deskwire_adapter.model import Outcome

PUSH_SECONDS: Final = 30.0
ASK_SECONDS: Final = 3.0
GOOD: Final = frozenset({Outcome.DELIVERED, Outcome.DUPLICATE, Outcome.SKIPPED})
_OUTCOMES: Final = frozenset(map(int, Outcome))
_LONGEST_PAUSE: Final = 3_600.0


class Fault(Exception):
    """What the adapter got wrong, in words."""


def event_id() -> str:
    """A UUIDv7 (RFC 9562)."""
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    number = number & ~(0xF << 76) | 0x7 << 76
    text = f"{number & ~(0x3 << 62) | 0x2 << 62:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def item(
    subject: Subject,
    about: str,
    *,
    event_type: str = "",
    sequence: int = 1,
    data: Mapping[str, Any] | None = None,
) -> pb.PushItem:
    """An event about something; `data` beside what the subject's events have."""
    said: dict[str, Any] = dict(subject.data) if subject.data is not None else {"number": sequence}
    said |= data or {}
    event = Event(
        event_id=event_id(),
        event_type=event_type or subject.event_type or "conformance_checked",
        tenant_id=subject.tenant_id,
        subject=about,
        sequence=sequence,
        origin="conformance:kit",
        trace_id=secrets.token_hex(16),
    )
    event.occurred_at.GetCurrentTime()
    event.data.Pack(
        JsonObject(
            fields={
                name: JsonValue(string_value=value if isinstance(value, str) else json.dumps(value))
                for name, value in said.items()
            }
        )
    )
    document = {
        "event_id": event.event_id,
        "event_type": event.event_type,
        "tenant_id": event.tenant_id,
        "subject": about,
        "sequence": sequence,
        "occurred_at": event.occurred_at.ToJsonString(),
        "origin": event.origin,
        "trace_id": event.trace_id,
        "data": said,
    }
    return pb.PushItem(
        event=event,
        json=json.dumps(document, ensure_ascii=False),
        attempt=1,
        traceparent=f"00-{event.trace_id}-{secrets.token_hex(8)}-01",
    )


class Peer:
    """One connection with a session."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.session = ""
        self.max_batch = 100
        self.longest = 0.0
        self._channel = subject.channel()
        self._stub: Any = system_adapter_service_pb2_grpc.SystemAdapterServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        await self.schema()
        await self.auth()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._channel.close()

    async def schema(self) -> pb.SchemaResponse:
        """Schema. Raises Fault."""
        request = pb.SchemaRequest(tenant_id=self.subject.tenant_id)
        answer: pb.SchemaResponse = await self._call(
            "Schema", self._stub.Schema(request, timeout=ASK_SECONDS, wait_for_ready=True)
        )
        self.max_batch = min(answer.max_batch or 100, 100)
        return answer

    async def auth(self, credentials: Mapping[str, str] | None = None) -> pb.AuthResponse:
        """A session. Raises Fault."""
        given = self.subject.credentials if credentials is None else credentials
        request = pb.AuthRequest(
            tenant_id=self.subject.tenant_id, credentials=given, config=self.subject.config
        )
        answer: pb.AuthResponse = await self._call(
            "Auth", self._stub.Auth(request, timeout=ASK_SECONDS)
        )
        self.session = answer.session
        return answer

    async def check(self) -> pb.CheckResponse:
        """Check. Raises Fault."""
        answer: pb.CheckResponse = await self._call(
            "Check", self._stub.Check(pb.CheckRequest(session=self.session), timeout=ASK_SECONDS)
        )
        return answer

    async def push(
        self, items: Sequence[pb.PushItem], *, session: str | None = None, attempt: int = 1
    ) -> list[pb.PushResult]:
        """Results that fit. Raises Fault for any that don't, and for a status."""
        call = self.begin_push(items, session=session, attempt=attempt)
        started = time.monotonic()
        answer: pb.PushResponse = await self._call("Push", call)
        self.longest = max(self.longest, time.monotonic() - started)
        results = list(answer.results)
        _check(items, results)
        return results

    def begin_push(
        self, items: Sequence[pb.PushItem], *, session: str | None = None, attempt: int = 1
    ) -> Any:
        """A Push under way, to be awaited or cancelled."""
        for each in items:
            each.attempt = attempt
        request = pb.PushRequest(session=self.session if session is None else session, items=items)
        metadata = (("traceparent", items[0].traceparent),)
        return self._stub.Push(request, timeout=PUSH_SECONDS, metadata=metadata)

    async def _call(self, name: str, call: Any) -> Any:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise Status(name, error.code(), error.details() or "") from error


class Status(Fault):
    """A call failed with a status."""

    def __init__(self, method: str, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{method} failed with {code.name}: {details[:200]}")
        self.code = code
        self.details = details


def _check(items: Sequence[pb.PushItem], results: Sequence[pb.PushResult]) -> None:
    if len(results) != len(items):
        raise Fault(f"it answered {len(results)} results for {len(items)} events")
    wanted = [each.event.event_id for each in items]
    told = [each.event_id for each in results]
    if told != wanted:
        kind = "in another order" if sorted(told) == sorted(wanted) else "for other events"
        raise Fault(f"it answered {kind}: event_id must be that of the item in the same place")
    for each in results:
        if int(each.outcome) not in _OUTCOMES:
            raise Fault(f"outcome {each.outcome} is none: the hub takes it as RETRY")
        seconds = each.retry_after.ToMicroseconds() / 1e6
        if not 0 <= seconds <= _LONGEST_PAUSE:
            raise Fault(f"retry_after is {seconds:g} s: it has to be 0 to an hour")


def names(results: Sequence[pb.PushResult]) -> str:
    """The outcomes, for people."""
    found = sorted({Outcome(each.outcome).name for each in results})
    details = next((each.detail for each in results if each.detail), "")
    return ", ".join(found) + (f" ({details[:100]})" if details else "")


def all_good(results: Sequence[pb.PushResult], what: str) -> None:
    """Raise Fault unless the system has all of them or doesn't care."""
    if not all(Outcome(each.outcome) in GOOD for each in results):
        raise Fault(f"{what}: {names(results)}")
