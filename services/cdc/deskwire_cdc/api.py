"""SourceService on gRPC: one row per RPC."""

from __future__ import annotations

from typing import Final

from deskwire.cdc.v1.source_service_pb2_grpc import SourceServiceServicer as Sources
from deskwire_cdc.actions import SERVICE, SourceActions
from deskwire_common.auth import Role
from deskwire_common.rpc.table import Service, Table, unary

_WRITERS: Final = frozenset({Role.OPERATOR, Role.INTEGRATION})
_READERS: Final = _WRITERS | {Role.SERVICE}

TABLE: Final = Table(
    Service(
        SERVICE,
        unary(Sources.CreateSource).by(SourceActions.create_source, _WRITERS),
        unary(Sources.GetSource).by(SourceActions.get_source, _READERS),
        unary(Sources.ListSources).by(SourceActions.list_sources, _READERS),
        unary(Sources.DeleteSource).by(SourceActions.delete_source, _WRITERS),
    )
)

AUTHORIZATION: Final = TABLE.authorization
"""Who may call each method, as the contract says it."""
