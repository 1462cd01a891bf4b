"""The ways to adapters: one port, one module for each way."""

from __future__ import annotations

from deskwire_events.adapters.grpc import GrpcAdapter
from deskwire_events.adapters.port import (
    MAX_BATCH,
    NOT_THERE,
    AdapterAway,
    AdapterPort,
    OpenAdapter,
    Result,
    Schema,
    TooLarge,
    introduce,
)

__all__ = [
    "MAX_BATCH",
    "NOT_THERE",
    "AdapterAway",
    "AdapterPort",
    "GrpcAdapter",
    "OpenAdapter",
    "Result",
    "Schema",
    "TooLarge",
    "introduce",
]
