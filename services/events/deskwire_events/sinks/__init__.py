"""Sinks that events are pushed to: one port, one module for each kind."""

from __future__ import annotations

from deskwire_events.sinks.adapter import AdapterSink, Schema
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
from deskwire_events.sinks.posting import Unanswered, Unreachable, tls_context
from deskwire_events.sinks.ways import NOT_THERE, OpenWay, way_to
from deskwire_events.sinks.webhook import WebhookSetup, WebhookSink, result_of

__all__ = [
    "MAX_BATCH",
    "NOT_THERE",
    "AdapterSink",
    "Away",
    "Faulty",
    "OpenSink",
    "OpenWay",
    "Outgoing",
    "Schema",
    "Sink",
    "TooLarge",
    "Unanswered",
    "Unreachable",
    "WebhookSetup",
    "WebhookSink",
    "clean",
    "result_of",
    "tls_context",
    "way_to",
]
