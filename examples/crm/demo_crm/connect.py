"""How this CRM is connected to deskwire: its database as a source, this program as an adapter."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from deskwire.cdc.v1 import source_pb2, source_service_pb2, source_service_pb2_grpc
from deskwire.events.v1 import (
    adapter_pb2,
    adapter_registry_service_pb2,
    adapter_registry_service_pb2_grpc,
)

SYSTEM_ID = "crm:main"
SOURCE_ID = "crm-db"
ADAPTER_ID = "crm-main"
_SECONDS = 15.0


def source(database: str | Path, system_id: str = SYSTEM_ID) -> source_pb2.Source:
    """The database as change capture needs it.

    A visitor signs in to the shop with the customer number: it is the subject of their token, and so
    the row's identity in namespace `visitor`, beside the one in this system's own namespace.
    """
    return source_pb2.Source(
        source_id=SOURCE_ID,
        kind=source_pb2.SOURCE_KIND_SQLITE,
        url=f"sqlite://{Path(database).absolute()}",
        system_id=system_id,
        tables=["customers", "orders"],
        customer_rule=source_pb2.CustomerRule(
            table="customers",
            id_column="customer_no",
            visitor_column="customer_no",
            columns={"display_name": "name", "email": "email", "mobile": "phone"},
            version_column="version",
        ),
        snapshot=True,
    )


def adapter(target: str, secret: str, system_id: str = SYSTEM_ID) -> adapter_pb2.Adapter:
    """This program as the hub needs it; `target` is the host:port on which it serves."""
    return adapter_pb2.Adapter(
        adapter_id=ADAPTER_ID,
        system_id=system_id,
        target=target,
        credentials={"secret": secret},
    )


def connect(
    *,
    cdc: str,
    events: str,
    token: str,
    database: str | Path,
    target: str,
    secret: str,
    system_id: str = SYSTEM_ID,
) -> dict[str, Any]:
    """Create the source and register the adapter; what is there already stays as it is.

    `cdc` and `events` are host:port, `token` one of role operator, or integration with this system id.
    Returns both as JSON, with `created` and `registered`. Blocks; raises grpc.RpcError.
    """
    metadata = (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(cdc) as channel:
        found, created = _source(channel, metadata, source(database, system_id))
    with grpc.insecure_channel(events) as channel:
        known, registered = _adapter(channel, metadata, adapter(target, secret, system_id))
    return {
        "source": MessageToDict(found, preserving_proto_field_name=True),
        "created": created,
        "adapter": MessageToDict(known, preserving_proto_field_name=True),
        "registered": registered,
    }


Metadata = tuple[tuple[str, str], ...]


def _source(
    channel: grpc.Channel, metadata: Metadata, wanted: source_pb2.Source
) -> tuple[source_pb2.Source, bool]:
    stub = source_service_pb2_grpc.SourceServiceStub(channel)
    try:
        made = stub.CreateSource(
            source_service_pb2.CreateSourceRequest(request_id=str(uuid.uuid4()), source=wanted),
            metadata=metadata,
            timeout=_SECONDS,
            wait_for_ready=True,
        )
    except grpc.RpcError as error:
        _only_if_there(error)
        asked = source_service_pb2.GetSourceRequest(source_id=wanted.source_id)
        found = stub.GetSource(asked, metadata=metadata, timeout=_SECONDS)
        return found.source, False
    return made.source, True


def _adapter(
    channel: grpc.Channel, metadata: Metadata, wanted: adapter_pb2.Adapter
) -> tuple[adapter_pb2.Adapter, bool]:
    stub = adapter_registry_service_pb2_grpc.AdapterRegistryServiceStub(channel)
    try:
        made = stub.RegisterAdapter(
            adapter_registry_service_pb2.RegisterAdapterRequest(
                request_id=str(uuid.uuid4()), adapter=wanted
            ),
            metadata=metadata,
            timeout=_SECONDS,
            wait_for_ready=True,
        )
    except grpc.RpcError as error:
        _only_if_there(error)
        asked = adapter_registry_service_pb2.GetAdapterRequest(adapter_id=wanted.adapter_id)
        found = stub.GetAdapter(asked, metadata=metadata, timeout=_SECONDS)
        return found.adapter, False
    return made.adapter, True


def _only_if_there(error: grpc.RpcError) -> None:
    if not isinstance(error, grpc.Call) or error.code() is not grpc.StatusCode.ALREADY_EXISTS:
        raise error
