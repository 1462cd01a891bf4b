"""SystemAdapterService: what deskwire's event hub calls."""

from __future__ import annotations

import hmac
import json
import secrets
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from demo_crm.store import CrmDatabase, Received
from demo_crm.tracing import Tracing
from deskwire.adapters.v1 import system_adapter_service_pb2 as pb
from deskwire.adapters.v1 import system_adapter_service_pb2_grpc
from deskwire.events.v1 import adapter_pb2
from deskwire.events.v1.chat_events_pb2 import CustomerUpdated

NAME = "demo-crm/0.1.0"
#: What this CRM wants to know of the desk.
EVENT_TYPES = (
    "conversation_opened",
    "conversation_closed",
    "customer_created",
    "customer_updated",
    "ticket_created",
    "ticket_solved",
    "ticket_reopened",
)
Context = grpc.ServicerContext


class CrmAdapter(system_adapter_service_pb2_grpc.SystemAdapterServiceServicer):
    """Records events and applies what the desk changed about a customer.

    `secret` is what `Auth` must bring in its credentials; `system_id` is this CRM's name in deskwire,
    under which a customer's identities have the customer number.
    """

    def __init__(
        self, database: CrmDatabase, *, secret: str, system_id: str, tracing: Tracing
    ) -> None:
        self._database = database
        self._secret = secret
        self._system_id = system_id
        self._tracing = tracing
        self._sessions: set[str] = set()
        self._lock = threading.Lock()

    def Schema(self, _request: pb.SchemaRequest, _context: Context) -> pb.SchemaResponse:  # noqa: N802
        """What this adapter can."""
        return pb.SchemaResponse(
            adapter=NAME, event_types=EVENT_TYPES, max_batch=50, idempotent=True
        )

    def Auth(self, request: pb.AuthRequest, context: Context) -> pb.AuthResponse:  # noqa: N802
        """A session for the right secret. It lasts as long as this process."""
        given = request.credentials.get("secret", "")
        if not hmac.compare_digest(given.encode(), self._secret.encode()):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the secret is wrong")
        session = secrets.token_urlsafe(24)
        with self._lock:
            self._sessions.add(session)
        return pb.AuthResponse(session=session)

    def Push(self, request: pb.PushRequest, context: Context) -> pb.PushResponse:  # noqa: N802
        """One result per event."""
        with self._lock:
            known = request.session in self._sessions
        metadata = dict(context.invocation_metadata() or ())
        results = []
        for item in request.items:
            if known:
                result = self._take(item, item.traceparent or _text(metadata.get("traceparent")))
            else:
                # Of before a restart: the hub calls Auth again.
                result = pb.PushResult(outcome=adapter_pb2.PUSH_OUTCOME_AUTH_EXPIRED)
            result.event_id = item.event.event_id
            results.append(result)
            if result.outcome == adapter_pb2.PUSH_OUTCOME_RETRY:
                known_rest = request.items[len(results) :]
                # Later events wait for this one, or they would overtake it.
                results += [_later(rest) for rest in known_rest]
                break
        return pb.PushResponse(results=results)

    def Check(self, request: pb.CheckRequest, context: Context) -> pb.CheckResponse:  # noqa: N802
        """Whether the database would take events."""
        with self._lock:
            known = request.session in self._sessions
        if not known:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "sign in first")
        try:
            self._database.received()
        except sqlite3.OperationalError as error:
            return pb.CheckResponse(healthy=False, detail=str(error))
        return pb.CheckResponse(healthy=True)

    def _take(self, item: pb.PushItem, traceparent: str) -> pb.PushResult:
        event = item.event
        with self._tracing.span("crm.push", traceparent) as span:
            span.set_attribute("deskwire.event_id", event.event_id)
            span.set_attribute("deskwire.event_type", event.event_type)
            if event.event_type not in EVENT_TYPES:
                return pb.PushResult(outcome=adapter_pb2.PUSH_OUTCOME_SKIPPED)
            received = Received(
                event_id=event.event_id,
                event_type=event.event_type,
                subject=event.subject,
                sequence=event.sequence,
                origin=event.origin,
                trace_id=event.trace_id,
                traceparent=traceparent,
                event=item.json or json.dumps({"event_id": event.event_id}),
            )
            customer_no, fields = self._change(item)
            try:
                is_new = self._database.record(received, customer_no, fields)
            except sqlite3.OperationalError as error:
                return pb.PushResult(outcome=adapter_pb2.PUSH_OUTCOME_RETRY, detail=str(error))
        return pb.PushResult(
            outcome=adapter_pb2.PUSH_OUTCOME_DELIVERED
            if is_new
            else adapter_pb2.PUSH_OUTCOME_DUPLICATE
        )

    def _change(self, item: pb.PushItem) -> tuple[str, dict[str, str]]:
        """The customer number and new values in a `customer_updated`; empty for everything else."""
        data = CustomerUpdated()
        if not item.event.data.Unpack(data):
            return "", {}
        number = next(
            (
                identity.value
                for identity in data.customer.identities
                if identity.namespace == self._system_id
            ),
            "",
        )
        fields = {
            name: getattr(data.customer, name)
            for name in data.changed
            if name in {"display_name", "email", "mobile"}
        }
        return number, fields


def serve(
    database: CrmDatabase, *, listen: str, secret: str, system_id: str, tracing: Tracing
) -> tuple[grpc.Server, int]:
    """Start the gRPC server on `listen` (host:port); returns it and its port. Raises OSError."""
    # One port, one server: by default a second one on the same port would start without an error.
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    adapter = CrmAdapter(database, secret=secret, system_id=system_id, tracing=tracing)
    system_adapter_service_pb2_grpc.add_SystemAdapterServiceServicer_to_server(adapter, server)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError:
        port = 0
    if not port:
        raise OSError(f"can't listen on {listen}")
    server.start()
    return server, port


def _later(item: pb.PushItem) -> pb.PushResult:
    return pb.PushResult(
        event_id=item.event.event_id,
        outcome=adapter_pb2.PUSH_OUTCOME_RETRY,
        detail="an earlier event of this call has to be tried again",
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
