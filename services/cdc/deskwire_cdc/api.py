"""SourceService on gRPC: who may call what, and each call handed to its use case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import grpc

from deskwire.cdc.v1 import source_service_pb2 as pb
from deskwire.cdc.v1 import source_service_pb2_grpc
from deskwire_cdc.actions import SERVICE, SourceActions
from deskwire_common.auth import Role

_WRITERS: Final = frozenset({Role.OPERATOR, Role.INTEGRATION})
_READERS: Final = _WRITERS | {Role.SERVICE}

#: Who may call each method.
AUTHORIZATION: Final[Mapping[str, frozenset[Role]]] = {
    f"/{SERVICE}/CreateSource": _WRITERS,
    f"/{SERVICE}/GetSource": _READERS,
    f"/{SERVICE}/ListSources": _READERS,
    f"/{SERVICE}/DeleteSource": _WRITERS,
}

Context = grpc.aio.ServicerContext[Any, Any]


class SourceApi(source_service_pb2_grpc.SourceServiceServicer):
    """The servicer. Its errors are the actions'.

    What they say on the wire, the interceptor knows.
    """

    def __init__(self, actions: SourceActions) -> None:
        self._actions = actions

    async def CreateSource(  # noqa: N802
        self, request: pb.CreateSourceRequest, _context: Context
    ) -> pb.CreateSourceResponse:
        """See the contract."""
        return await self._actions.create_source(request)

    async def GetSource(  # noqa: N802
        self, request: pb.GetSourceRequest, _context: Context
    ) -> pb.GetSourceResponse:
        """See the contract."""
        return await self._actions.get_source(request)

    async def ListSources(  # noqa: N802
        self, request: pb.ListSourcesRequest, _context: Context
    ) -> pb.ListSourcesResponse:
        """See the contract."""
        return await self._actions.list_sources(request)

    async def DeleteSource(  # noqa: N802
        self, request: pb.DeleteSourceRequest, _context: Context
    ) -> pb.DeleteSourceResponse:
        """See the contract."""
        return await self._actions.delete_source(request)
