"""Sinks that events are pushed to: one port, one module for each kind."""

from __future__ import annotations

from deskwire_events.sinks.adapter import NOT_THERE, AdapterSink, Schema
from deskwire_events.sinks.port import (
    MAX_BATCH,
    Away,
    Faulty,
    OpenSink,
    Outgoing,
    Sink,
    TooLarge,
    clean,
)

__all__ = [
    "MAX_BATCH",
    "NOT_THERE",
    "AdapterSink",
    "Away",
    "Faulty",
    "OpenSink",
    "Outgoing",
    "Schema",
    "Sink",
    "TooLarge",
    "clean",
]
