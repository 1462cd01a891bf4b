"""Topics of the contract on a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from deskwire_common import topics as registry
from deskwire_common.errors import Unavailable
from deskwire_common.kafka.records import patiently, silent
from deskwire_common.topics import Topic

_DEVELOPMENT: Final = (
    "mockCluster"  # how librdkafka's mock cluster, the development broker, begins its id
)


def _admin(bootstrap: str) -> AdminClient:
    settings: Any = {"bootstrap.servers": bootstrap, "error_cb": silent, "log_level": 0}
    return AdminClient(settings)


def partitions_of(client: Any, topic: str) -> list[int]:
    """Return the partitions of a topic; blocks while it is being made, for ten seconds at the most.

    It is asked for by name, so that a broker that makes topics at their first use makes it. Raises KafkaException for a
    topic that isn't there: without partitions, it would be read in silence.
    """

    def ask() -> list[int]:
        found = client.list_topics(topic, timeout=10).topics[topic]
        if found.error is not None:
            raise KafkaException(found.error)
        return list(found.partitions)

    known: list[int] = patiently(ask)
    return known


async def cluster_id(bootstrap: str, timeout: float = 10.0) -> str:
    """Return the cluster's id. Raises Unavailable when the broker doesn't answer within `timeout` seconds."""

    def ask() -> str:
        try:
            return str(_admin(bootstrap).list_topics(timeout=timeout).cluster_id)
        except KafkaException as error:
            raise Unavailable(f"Kafka doesn't answer at {bootstrap}: {error}") from error

    return await asyncio.to_thread(ask)


async def ensure_topics(
    bootstrap: str, wanted: Iterable[Topic] | None = None, *, timeout: float = 15.0
) -> list[str]:
    """Create those topics of the contract (all fixed ones by default) that are missing; return their names.

    Replication is the broker's default. The development broker has no admin interface: it makes topics when they are
    asked for, and they aren't returned. Raises Unavailable when the broker doesn't answer.
    """
    chosen = list(registry.fixed_topics() if wanted is None else wanted)

    def create() -> list[str]:
        admin = _admin(bootstrap)
        try:
            cluster = admin.list_topics(timeout=timeout)
            if str(cluster.cluster_id).startswith(_DEVELOPMENT):
                for topic in chosen:
                    partitions_of(admin, topic.name)
                return []
        except KafkaException as error:
            raise Unavailable(f"Kafka doesn't answer at {bootstrap}: {error}") from error
        missing = [topic for topic in chosen if topic.name not in cluster.topics]
        if not missing:
            return []
        made = admin.create_topics(
            [
                NewTopic(
                    topic.name,
                    num_partitions=topic.partitions,
                    replication_factor=-1,
                    config=topic.config(),
                )
                for topic in missing
            ],
            operation_timeout=timeout,
            request_timeout=timeout,
        )
        for name, future in made.items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise Unavailable(f"can't create topic {name}: {error}") from error
        return [topic.name for topic in missing]

    return await asyncio.to_thread(create)
