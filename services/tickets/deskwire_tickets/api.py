"""TicketService on gRPC: one row per RPC."""

from __future__ import annotations

from typing import Final

from deskwire.tickets.v1.ticket_service_pb2_grpc import TicketServiceServicer as Tickets
from deskwire_common.auth import Role
from deskwire_common.rpc.table import Service, Table, unary
from deskwire_tickets.actions import SERVICE, TicketActions

_WORKERS: Final = frozenset({Role.AGENT, Role.INTEGRATION, Role.OPERATOR})
_READERS: Final = _WORKERS | {Role.BOT, Role.SERVICE}

TABLE: Final = Table(
    Service(
        SERVICE,
        unary(Tickets.CreateTicket).by(TicketActions.create_ticket, _WORKERS | {Role.BOT}),
        unary(Tickets.GetTicket).by(TicketActions.get_ticket, _READERS),
        unary(Tickets.ListTickets).by(TicketActions.list_tickets, _READERS),
        unary(Tickets.SolveTicket).by(TicketActions.solve_ticket, _WORKERS),
        unary(Tickets.ReopenTicket).by(TicketActions.reopen_ticket, _WORKERS),
        unary(Tickets.ListTicketAudit).by(TicketActions.list_ticket_audit, _WORKERS),
    )
)

AUTHORIZATION: Final = TABLE.authorization
"""Who may call each method, as the contract states it."""
