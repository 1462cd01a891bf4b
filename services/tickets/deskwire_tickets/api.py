"""TicketService on gRPC: who may call what, and each call handed to its use case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import grpc

from deskwire.tickets.v1 import ticket_service_pb2 as pb
from deskwire.tickets.v1 import ticket_service_pb2_grpc
from deskwire_common.auth import Role
from deskwire_tickets.actions import SERVICE, TicketActions

_WORKERS: Final = frozenset({Role.AGENT, Role.INTEGRATION, Role.OPERATOR})
_READERS: Final = _WORKERS | {Role.BOT, Role.SERVICE}

#: Who may call each method.
AUTHORIZATION: Final[Mapping[str, frozenset[Role]]] = {
    f"/{SERVICE}/CreateTicket": _WORKERS | {Role.BOT},
    f"/{SERVICE}/GetTicket": _READERS,
    f"/{SERVICE}/ListTickets": _READERS,
    f"/{SERVICE}/SolveTicket": _WORKERS,
    f"/{SERVICE}/ReopenTicket": _WORKERS,
    f"/{SERVICE}/ListTicketAudit": _WORKERS,
}

Context = grpc.aio.ServicerContext[Any, Any]


class TicketApi(ticket_service_pb2_grpc.TicketServiceServicer):
    """The servicer. Errors are the actions'; the interceptor puts them on the wire."""

    def __init__(self, actions: TicketActions) -> None:
        self._actions = actions

    async def CreateTicket(  # noqa: N802
        self, request: pb.CreateTicketRequest, _context: Context
    ) -> pb.CreateTicketResponse:
        """See the contract."""
        return await self._actions.create_ticket(request)

    async def GetTicket(  # noqa: N802
        self, request: pb.GetTicketRequest, _context: Context
    ) -> pb.GetTicketResponse:
        """See the contract."""
        return await self._actions.get_ticket(request)

    async def ListTickets(  # noqa: N802
        self, request: pb.ListTicketsRequest, _context: Context
    ) -> pb.ListTicketsResponse:
        """See the contract."""
        return await self._actions.list_tickets(request)

    async def SolveTicket(  # noqa: N802
        self, request: pb.SolveTicketRequest, _context: Context
    ) -> pb.SolveTicketResponse:
        """See the contract."""
        return await self._actions.solve_ticket(request)

    async def ReopenTicket(  # noqa: N802
        self, request: pb.ReopenTicketRequest, _context: Context
    ) -> pb.ReopenTicketResponse:
        """See the contract."""
        return await self._actions.reopen_ticket(request)

    async def ListTicketAudit(  # noqa: N802
        self, request: pb.ListTicketAuditRequest, _context: Context
    ) -> pb.ListTicketAuditResponse:
        """See the contract."""
        return await self._actions.list_ticket_audit(request)
