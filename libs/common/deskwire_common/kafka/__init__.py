"""Kafka: a thin asyncio interface to confluent-kafka's plain Producer and Consumer. Nobody uses consumer groups.

librdkafka does the work on its own threads. Waiting for it blocks, so each producer and consumer has a thread of its
own, which hands the results to the event loop.
"""

from __future__ import annotations

from deskwire_common.kafka.producer import (
    DELIVERY_TIMEOUT_MS,
    MAX_RECORD_BYTES,
    TOPIC_REASONS,
    Failure,
    Producer,
    Undelivered,
)
from deskwire_common.kafka.reader import Reader
from deskwire_common.kafka.records import Headers, Outgoing, Place, Record, patiently, split
from deskwire_common.kafka.topics import cluster_id, ensure_topics

__all__ = [
    "DELIVERY_TIMEOUT_MS",
    "MAX_RECORD_BYTES",
    "TOPIC_REASONS",
    "Failure",
    "Headers",
    "Outgoing",
    "Place",
    "Producer",
    "Reader",
    "Record",
    "Undelivered",
    "cluster_id",
    "ensure_topics",
    "patiently",
    "split",
]
