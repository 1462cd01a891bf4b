"""Use cases of the gateway's unary side."""

from __future__ import annotations

from dataclasses import dataclass

from deskwire.gateway.v1 import gateway_service_pb2 as pb
from deskwire_common.auth import current_principal
from deskwire_common.pagination import page
from deskwire_gateway.directory import Directory, session_message


@dataclass(frozen=True, slots=True)
class GatewayActions:
    """Lists who is connected, in the current principal's tenant."""

    directory: Directory

    async def list_sessions(self, request: pb.ListSessionsRequest) -> pb.ListSessionsResponse:
        """Raises InvalidArgument (INVALID_PAGE_TOKEN), Unavailable (the directory)."""
        tenant = current_principal().tenant
        found, token = await page(
            request,
            "ListSessions",
            {"tenant": tenant},
            shape=(str,),
            read=lambda key, limit: self.directory.page(
                tenant, after=str(key[0]) if key else "", limit=limit
            ),
            key=lambda entry: (entry.session_id,),
            view=session_message,
        )
        return pb.ListSessionsResponse(sessions=found, next_page_token=token)
