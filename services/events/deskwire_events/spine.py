"""What the hub asks Kafka beside reading: captured tables, and where a consumer group begins."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from confluent_kafka import Consumer as RdConsumer
from confluent_kafka import KafkaException, TopicPartition

from deskwire_common import topics
from deskwire_common.errors import Unavailable
from deskwire_common.kafka import patiently
from deskwire_events.domain import Selection

_TIMEOUT: Final = 5.0


def _ignore(_error: object) -> None:
    """librdkafka tells of every broken connection; what matters comes back from the calls."""


def _client(bootstrap: str, group: str) -> RdConsumer:
    config: dict[str, Any] = {
        "bootstrap.servers": bootstrap,
        "group.id": group,
        "enable.auto.commit": False,
        "error_cb": _ignore,
        "log_level": 0,
    }
    return RdConsumer(config)


async def resolve(bootstrap: str, selection: Selection) -> list[str]:
    """The topics of a selection as they are now. Raises Unavailable."""
    if not selection.changes:
        return list(selection.names)

    def ask() -> list[str]:
        client = _client(bootstrap, "deskwire-hub")
        try:
            found = client.list_topics(timeout=_TIMEOUT).topics
        except KafkaException as error:
            raise Unavailable(f"Kafka doesn't answer: {error}", retry_after=1.0) from error
        finally:
            client.close()
        changes = [name for name in found if re.match(topics.CHANGES_PATTERN, name)]
        return [*selection.names, *sorted(changes)]

    return await asyncio.to_thread(ask)


def patterns(selection: Selection) -> list[str]:
    """What a consumer group subscribes to, so that tables captured later are in it."""
    return [*selection.names, *([topics.CHANGES_PATTERN] if selection.changes else [])]


async def begin_at_end(bootstrap: str, group: str, names: Sequence[str]) -> None:
    """Let a group without a place in some partitions of these topics begin at their ends.

    Committed and not only meant: a group that has no place after a restart would begin elsewhere and
    lose what came in between. Raises Unavailable.
    """

    def commit() -> None:
        client = _client(bootstrap, group)
        try:
            places = [
                TopicPartition(name, partition)
                for name in names
                # Asked for by name, so that topics nobody wrote to yet are made.
                for partition in client.list_topics(name, timeout=_TIMEOUT).topics[name].partitions
            ]
            known = patiently(partial(client.committed, places, timeout=_TIMEOUT))
            fresh = [place for place in known if place.offset < 0]
            for place in fresh:
                ends = partial(client.get_watermark_offsets, place, timeout=_TIMEOUT)
                place.offset = patiently(ends)[1]
            if fresh:
                patiently(partial(client.commit, offsets=fresh, asynchronous=False))
        except KafkaException as error:
            raise Unavailable(f"Kafka doesn't answer: {error}", retry_after=1.0) from error
        finally:
            client.close()

    await asyncio.to_thread(commit)
