"""Use cases of the gateway's unary side."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from deskwire.gateway.v1 import gateway_service_pb2 as pb
from deskwire_common.auth import current_principal
from deskwire_common.pagination import PageKey, page
from deskwire_gateway.directory import Directory


@dataclass(frozen=True, slots=True)
class GatewayActions:
    """A look at who is connected, in the current principal's tenant."""

    directory: Directory

    async def list_sessions(self, request: pb.ListSessionsRequest) -> pb.ListSessionsResponse:
        """Raises InvalidArgument (INVALID_PAGE_TOKEN), Unavailable (the directory)."""
        tenant = current_principal().tenant
        everybody = await self.directory.list(tenant)

        async def read(key: PageKey | None, limit: int) -> list[pb.Session]:
            after = str(key[0]) if key else ""
            first = bisect_right(everybody, after, key=lambda session: session.session_id)
            return everybody[first : first + limit]

        found, token = await page(
            request,
            "ListSessions",
            {"tenant": tenant},
            shape=(str,),
            read=read,
            key=lambda session: (session.session_id,),
            view=lambda session: session,
        )
        return pb.ListSessionsResponse(sessions=found, next_page_token=token)
