"""Every metric of deskwire, by name, once. Elsewhere they are used as `METRICS.rpc_seconds`.

The registry is our own: importing this twice or running several services in one test process breaks nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from threading import Thread
from typing import Any, Final
from urllib.request import urlopen

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.parser import text_string_to_metric_families

REGISTRY: Final = CollectorRegistry()

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SLOW = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"deskwire_{name}", text, labels, registry=REGISTRY)


class Tally:
    """A plain number that one thread adds to."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Add to it."""
        self.value += amount


class Tallies:
    """A counter for what happens many thousand times a second, on the event loop only.

    prometheus_client's own counter takes a lock and some 0.7 µs each time.
    """

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self._name = f"deskwire_{name}"
        self._text = text
        self._labels = labels
        self._tallies: dict[tuple[str, ...], Tally] = {}
        REGISTRY.register(self)

    def labels(self, *values: str) -> Tally:
        """Return the tally of some label values, or of none: call this once, and keep the result."""
        found = self._tallies.get(values)
        if found is None:
            found = self._tallies[values] = Tally()
        return found

    def collect(self) -> Iterator[Metric]:
        """Return the values for prometheus_client."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, tally in list(self._tallies.items()):
            family.add_metric(values, tally.value)
        yield family


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(f"deskwire_{name}", text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(f"deskwire_{name}", text, labels, buckets=buckets, registry=REGISTRY)


class Metrics:
    """All metrics. Labels have few values by construction: never an id, a tenant or a text."""

    def __init__(self) -> None:  # noqa: PLR0915 - one line each
        # gRPC
        self.rpc_seconds = _histogram(
            "rpc_seconds",
            "Time to serve an RPC, by method and status code.",
            _FAST,
            "method",
            "code",
        )
        self.rpc_in_flight = _gauge("rpc_in_flight", "RPCs being served now.", "method")
        self.rpc_client_seconds = _histogram(
            "rpc_client_seconds", "Time of an outgoing unary call.", _FAST, "method", "code"
        )
        # chat
        self.messages_stored = Tallies("messages_stored_total", "Messages committed.", "origin")
        self.messages_imported = _counter(
            "messages_imported_total", "Messages of other systems that were stored."
        )
        self.messages_duplicate = _counter(
            "messages_duplicate_total", "Sends that were answered from the first one."
        )
        self.messages_refused = _counter("messages_refused_total", "Sends refused.", "reason")
        self.deliveries = Tallies("deliveries_total", "Messages handed to connections.")
        self.commit_group_size = _histogram(
            "commit_group_size", "Messages per committed group.", _SIZES
        )
        self.commit_seconds = _histogram("commit_seconds", "Time of a group's commit.", _FAST)
        self.partitions_owned = _gauge("partitions_owned", "Partitions that this process owns.")
        self.calls_forwarded = _counter(
            "calls_forwarded_total", "Calls passed on to the conversation's owner.", "method"
        )
        self.partition_head = _gauge("partition_head", "Last committed position.", "partition")
        self.partition_published = _gauge(
            "partition_published", "Last position that Kafka has acknowledged.", "partition"
        )
        self.attached = _gauge("attached_connections", "Connections attached to this shard.")
        self.search_indexed = _counter(
            "search_indexed_total", "Messages put into the search index."
        )
        self.search_behind = _gauge("search_behind", "Messages that the search index lacks.")
        self.search_lag_seconds = _gauge(
            "search_lag_seconds", "Age of the oldest message that the search index lacks."
        )
        self.attachment_bytes = _counter(
            "attachment_bytes_total", "Bytes of attachments that went through this process.", "way"
        )
        self.attachments_removed = _counter(
            "attachments_removed_total", "Attachments removed: redacted, or never sent."
        )
        self.chat_streams = _gauge("chat_streams", "Open streams of callers.")
        self.conversations_queued = _gauge(
            "conversations_queued", "Conversations without an agent."
        )
        self.conversations_assigned = _counter(
            "conversations_assigned_total", "Conversations given to an agent."
        )
        self.conversations_of_absent = _gauge(
            "conversations_of_absent",
            "Conversations whose agent or bot has no open connection: customers who wait for them.",
            "kind",
        )
        self.conversations_put_back = _counter(
            "conversations_put_back_total",
            "Conversations that went back to the queue since their agent or bot was gone or disabled.",
            "cause",
        )
        self.offers = _counter(
            "offers_total", "Offers to agents: how many were made, and how they ended.", "outcome"
        )
        # tickets
        self.ticket_transitions = _counter(
            "ticket_transitions_total", "State changes of tickets.", "transition"
        )
        # outbox and Kafka
        self.outbox_depth = _gauge("outbox_depth", "Events waiting for Kafka.")
        self.outbox_lag_seconds = _gauge("outbox_lag_seconds", "Age of the oldest waiting event.")
        self.outbox_published = _counter("outbox_published_total", "Events published.", "topic")
        self.outbox_parked = _gauge(
            "outbox_parked", "Events that Kafka refuses, and later ones of their keys."
        )
        self.outbox_refused = _counter(
            "outbox_refused_total",
            "Events that were parked as Kafka refuses them.",
            "topic",
            "reason",
        )
        self.kafka_produce_seconds = _histogram(
            "kafka_produce_seconds", "From a batch of records to its delivery.", _FAST
        )
        self.kafka_producer_restarts = _counter(
            "kafka_producer_restarts_total", "Producers purged and rebuilt after a failure."
        )
        self.kafka_produce_failures = _counter(
            "kafka_produce_failures_total", "Delivery reports with an error.", "topic"
        )
        self.hub_unreadable = _counter(
            "hub_unreadable_records_total", "Records on topics of events that are none."
        )
        # event hub
        self.hub_deliveries = _counter("hub_deliveries_total", "Pushes to adapters.", "outcome")
        self.hub_delivery_seconds = _histogram(
            "hub_delivery_seconds", "From the event to the adapter's ack.", _SLOW
        )
        self.hub_dead_letters = _counter("hub_dead_letters_total", "Events given up on.")
        self.hub_adapter_exits = _counter(
            "hub_adapter_exits_total", "Ends of processes of Python adapters.", "adapter", "how"
        )
        self.hub_adapter_log_dropped = _counter(
            "hub_adapter_log_dropped_total", "Lines of Python adapters not logged.", "adapter"
        )
        self.hub_subscriptions = _gauge("hub_subscriptions", "Open Subscribe streams.")
        self.hub_running = _gauge(
            "hub_running_subscriptions",
            "Named subscriptions and adapters that this process works on.",
        )
        self.hub_failing = _gauge("hub_failing_subscriptions", "Those whose last delivery failed.")
        self.hub_parked = _gauge(
            "hub_parked_deliveries",
            "Events that wait for their next try, apart from those in memory.",
        )
        # change capture
        self.cdc_changes = _counter("cdc_changes_total", "Row changes read.", "source", "table")
        self.cdc_rows_unreadable = _counter(
            "cdc_rows_unreadable_total",
            "Row changes told without the row: undecodable, or too large.",
            "source",
            "table",
        )
        self.cdc_read_lag_seconds = _gauge(
            "cdc_read_lag_seconds", "From the source's commit to our read.", "source"
        )
        self.cdc_sink_lag_seconds = _gauge(
            "cdc_sink_lag_seconds", "From our read to the sink's ack.", "source"
        )
        self.cdc_sync_calls = _counter(
            "cdc_sync_calls_total", "Calls made by sync rules.", "source", "outcome"
        )
        # gateway
        self.receipts_dropped = _counter(
            "receipts_dropped_total", "Receipts that found no room to wait."
        )
        self.gateway_connections = _gauge("gateway_connections", "Open connections.", "transport")
        self.gateway_accepted = _counter(
            "gateway_accepted_total", "Connections accepted.", "transport"
        )
        self.gateway_closed = _counter("gateway_closed_total", "Connections closed.", "reason")
        self.gateway_frames = Tallies("gateway_frames_total", "Frames.", "direction")
        self.gateway_bytes = Tallies("gateway_bytes_total", "Bytes of frames.", "direction")
        self.gateway_dropped = _counter("gateway_dropped_total", "Frames not delivered.", "reason")
        self.gateway_resumes = _counter(
            "gateway_resumes_total", "Sessions resumed, lossless or lossy.", "outcome"
        )
        self.gateway_refused = _counter("gateway_refused_total", "Frames refused.", "reason")
        self.gateway_rests = _counter(
            "gateway_rests_total", "Pauses in reading from clients that send far too fast."
        )
        self.gateway_link_items = _histogram(
            "gateway_link_items", "Items per batch on the link to chat.", _SIZES
        )
        self.gateway_links = _gauge("gateway_links", "Streams to chat shards that are up.")
        # process
        self.background_crashes = _counter(
            "background_crashes_total", "Background tasks that ended by themselves.", "task"
        )


METRICS: Final = Metrics()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)


class MetricsServer:
    """The Prometheus endpoint: `/metrics` on a thread of its own."""

    def __init__(self, server: Any, thread: Thread) -> None:
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop serving; blocks up to half a second."""
        with contextlib.suppress(OSError):
            self._server.shutdown()
            self._server.server_close()
        self._thread.join(1)


def start_metrics_server(listen: str) -> MetricsServer | None:
    """Serve the metrics on `listen` (host:port); None for "". Raises OSError when the port is taken."""
    return _serve(listen, REGISTRY)


def serve_workers_metrics(listen: str, workers: Sequence[str]) -> MetricsServer | None:
    """Serve the metrics of other processes, which serve them at `workers` (host:port), on `listen`.

    Each sample gets the label `worker`, its place in `workers`; one that doesn't answer is left out.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Together(workers))
    return _serve(listen, registry)


class _Together:
    """Collects the metrics that workers serve."""

    def __init__(self, workers: Sequence[str]) -> None:
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for number, address in enumerate(self._workers):
            try:
                with urlopen(f"http://{address}/metrics", timeout=1) as answer:
                    text = answer.read().decode()
            except OSError:
                continue
            for family in text_string_to_metric_families(text):
                together = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, "worker": str(number)}
                    together.samples.append(sample._replace(labels=labels))
        yield from families.values()


def _serve(listen: str, registry: CollectorRegistry) -> MetricsServer | None:
    if not listen:
        return None
    host, _, port = listen.rpartition(":")
    server, thread = start_http_server(int(port), host.strip("[]") or "0.0.0.0", registry=registry)
    return MetricsServer(server, thread)
