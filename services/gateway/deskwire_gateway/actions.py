"""Use cases of the gateway's unary side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from deskwire.gateway.v1 import gateway_service_pb2 as pb
from deskwire_common.auth import current_principal
from deskwire_common.pagination import decode_page, encode_page
from deskwire_gateway.directory import Directory

_PAGE: Final = 50


@dataclass(frozen=True, slots=True)
class GatewayActions:
    """A look at who is connected, in the current principal's tenant."""

    directory: Directory

    async def list_sessions(self, request: pb.ListSessionsRequest) -> pb.ListSessionsResponse:
        """Raises InvalidArgument (INVALID_PAGE_TOKEN), Unavailable (the directory)."""
        tenant = current_principal().tenant
        filters = {"tenant": tenant}
        key = decode_page(request.page_token, "ListSessions", filters, shape=(str,))
        size = request.page_size or _PAGE
        found = await self.directory.list(tenant)
        if key:
            found = [each for each in found if each.session_id > str(key[0])]
        token = ""
        if len(found) > size:
            token = encode_page("ListSessions", filters, (found[size - 1].session_id,))
        return pb.ListSessionsResponse(sessions=found[:size], next_page_token=token)
