"""The use cases of tickets: each is one transaction, idempotent by request_id, with its event in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from deskwire.common.v1 import actor_pb2
from deskwire.tickets.v1 import ticket_service_pb2 as pb
from deskwire_common import texts
from deskwire_common.auth import Principal, current_principal
from deskwire_common.clock import Clock, now_micros
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.errors import InvalidArgument
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.ids import Ids
from deskwire_common.metrics import METRICS
from deskwire_common.outbox import Outbox
from deskwire_common.pagination import page
from deskwire_tickets import domain, events
from deskwire_tickets.clients import ChatClient
from deskwire_tickets.domain import Actor, Change, Ticket, TicketPriority, TicketState
from deskwire_tickets.store import audit, tickets
from deskwire_tickets.store.tickets import TicketFilter

SERVICE: Final = "deskwire.tickets.v1.TicketService"
CREATE: Final = f"{SERVICE}/CreateTicket"
SOLVE: Final = f"{SERVICE}/SolveTicket"
REOPEN: Final = f"{SERVICE}/ReopenTicket"

ResponseT = TypeVar(
    "ResponseT", pb.CreateTicketResponse, pb.SolveTicketResponse, pb.ReopenTicketResponse
)
Transition: TypeAlias = pb.SolveTicketRequest | pb.ReopenTicketRequest
Request: TypeAlias = pb.CreateTicketRequest | Transition


@dataclass(frozen=True, slots=True)
class TicketActions:
    """The use cases of tickets, for the current principal and in its tenant."""

    db: Database
    outbox: Outbox
    idempotency: IdempotencyStore
    chat: ChatClient
    clock: Clock
    ids: Ids

    async def create_ticket(self, request: pb.CreateTicketRequest) -> pb.CreateTicketResponse:
        """Create a ticket from a conversation.

        Raises NotFound (CONVERSATION_NOT_FOUND), RequestIdReused, Unavailable.
        """
        principal = current_principal()
        _check_texts(request_id=request.request_id, description=request.description)
        subject = texts.line(request.subject, "subject")
        # A repeated request is answered even when chat is away or has forgotten the conversation.
        found = await self.idempotency.answered(
            self.db, method=CREATE, request=request, response_class=pb.CreateTicketResponse
        )
        if found is not None:
            return found
        # Call chat before the transaction: no call to another service may run while rows are locked.
        customer_id = await self.chat.customer_of(principal.tenant, request.conversation_id)

        async def decide(uow: UnitOfWork) -> Change:
            number = await tickets.next_number(uow, principal.tenant)
            return domain.create(
                tenant=principal.tenant,
                ticket_id=self.ids.uuid7(),
                number=number,
                subject=subject,
                description=request.description,
                priority=TicketPriority(request.priority or TicketPriority.NORMAL),
                conversation_id=request.conversation_id,
                customer_id=customer_id,
                by=_actor(principal),
                now=now_micros(self.clock),
            )

        return await self._change(CREATE, request, decide, pb.CreateTicketResponse)

    async def solve_ticket(self, request: pb.SolveTicketRequest) -> pb.SolveTicketResponse:
        """Solve a ticket: OPEN → SOLVED.

        Raises NotFound (TICKET_NOT_FOUND), FailedPrecondition (INVALID_STATE), VersionMismatch,
        RequestIdReused.
        """
        _check_texts(request_id=request.request_id, resolution=request.resolution)

        async def decide(uow: UnitOfWork) -> Change:
            return domain.solve(
                await _lock(uow, request),
                resolution=request.resolution,
                expected_version=request.expected_version,
                by=_actor(current_principal()),
                now=now_micros(self.clock),
            )

        return await self._change(SOLVE, request, decide, pb.SolveTicketResponse)

    async def reopen_ticket(self, request: pb.ReopenTicketRequest) -> pb.ReopenTicketResponse:
        """Reopen a ticket: SOLVED → OPEN.

        Raises NotFound (TICKET_NOT_FOUND), FailedPrecondition (INVALID_STATE), VersionMismatch,
        RequestIdReused.
        """
        _check_texts(request_id=request.request_id, reason=request.reason)

        async def decide(uow: UnitOfWork) -> Change:
            return domain.reopen(
                await _lock(uow, request),
                reason=request.reason,
                expected_version=request.expected_version,
                by=_actor(current_principal()),
                now=now_micros(self.clock),
            )

        return await self._change(REOPEN, request, decide, pb.ReopenTicketResponse)

    async def get_ticket(self, request: pb.GetTicketRequest) -> pb.GetTicketResponse:
        """Return a ticket. Raises NotFound (TICKET_NOT_FOUND)."""
        async with self.db.read() as c:
            ticket = await tickets.get(c, current_principal().tenant, request.ticket_id)
        if ticket is None:
            raise domain.not_found(request.ticket_id)
        return pb.GetTicketResponse(ticket=events.ticket_message(ticket))

    async def list_tickets(self, request: pb.ListTicketsRequest) -> pb.ListTicketsResponse:
        """Return a page of tickets, newest first. Raises InvalidArgument (INVALID_PAGE_TOKEN)."""
        ids = {
            "conversation_id": request.conversation_id,
            "customer_id": request.customer_id,
            "assignee_id": request.assignee_id,
        }
        _check_ids(**ids)
        tenant = current_principal().tenant
        wanted = TicketFilter(states=sorted({TicketState(each) for each in request.states}), **ids)
        async with self.db.read() as c:
            found, token = await page(
                request,
                "ListTickets",
                {**ids, "states": [int(state) for state in wanted.states]},
                shape=(int,),
                read=lambda key, limit: tickets.page(
                    c, tenant, wanted, below=int(key[0]) if key else None, limit=limit
                ),
                key=lambda ticket: (ticket.number,),
                view=events.ticket_message,
            )
        return pb.ListTicketsResponse(tickets=found, next_page_token=token)

    async def list_ticket_audit(
        self, request: pb.ListTicketAuditRequest
    ) -> pb.ListTicketAuditResponse:
        """Return a page of a ticket's changes, oldest first.

        Raises NotFound (TICKET_NOT_FOUND), InvalidArgument (INVALID_PAGE_TOKEN).
        """
        tenant, ticket_id = current_principal().tenant, request.ticket_id
        async with self.db.read() as c:
            if await tickets.get(c, tenant, ticket_id) is None:
                raise domain.not_found(ticket_id)
            found, token = await page(
                request,
                "ListTicketAudit",
                {"ticket_id": ticket_id},
                shape=(int,),
                read=lambda key, limit: audit.page(
                    c, tenant, ticket_id, after=int(key[0]) if key else 0, limit=limit
                ),
                key=lambda entry: (entry.version,),
                view=events.audit_message,
            )
        return pb.ListTicketAuditResponse(entries=found, next_page_token=token)

    async def _change(
        self,
        method: str,
        request: Request,
        decide: Callable[[UnitOfWork], Awaitable[Change]],
        response_class: type[ResponseT],
    ) -> ResponseT:
        """Decide a change once per request_id; store it with its event."""

        async def work(uow: UnitOfWork) -> ResponseT:
            change = await decide(uow)
            # Lock the ticket's row before its event gets its place in the outbox.
            if change.before is None:
                await tickets.add(uow, change.after)
            else:
                await tickets.save(uow, change)
            await audit.add(uow, change)
            event = events.ticket_event(change, ids=self.ids, clock=self.clock)
            await self.outbox.add(uow, [event])
            uow.after_commit(METRICS.ticket_transitions.labels(change.entry.action.value).inc)
            return response_class(ticket=events.ticket_message(change.after))

        return await self.idempotency.once(self.db, method=method, request=request, work=work)


async def _lock(uow: UnitOfWork, request: Transition) -> Ticket:
    ticket = await tickets.lock(uow, current_principal().tenant, request.ticket_id)
    if ticket is None:
        raise domain.not_found(request.ticket_id)
    return ticket


def _actor(principal: Principal) -> Actor:
    return Actor(
        role=actor_pb2.Role.Value(f"ROLE_{principal.role.name}"),
        subject=principal.subject,
        name=principal.name,
        origin=principal.system,
    )


def _check_texts(**texts: str) -> None:
    """Raise InvalidArgument for texts with a NUL, which PostgreSQL can't store."""
    for field, text in texts.items():
        if "\x00" in text:
            raise InvalidArgument(f"{field} has a NUL character", field=field)


def _check_ids(**texts: str) -> None:
    """Raise InvalidArgument for ids that aren't printable ASCII, before a database is asked for them."""
    for field, text in texts.items():
        if not (text.isascii() and text.isprintable()):
            raise InvalidArgument(f"{field} is no id", field=field)
