"""Records, and the errors of reading them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Message as RdMessage

from deskwire_common.errors import Unavailable

T = TypeVar("T")
Headers = list[tuple[str, bytes]]
Outgoing = tuple[str, bytes, bytes, Headers]
"""Topic, key, value, headers."""
_NOT_YET: Final = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        # The answer of a group's coordinator when its broker has just started.
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001 - its public name has the underscore
    }
)
_OUT_OF_RANGE: Final = frozenset(
    {
        KafkaError.OFFSET_OUT_OF_RANGE,
        # librdkafka's form of it where auto.offset.reset is "error"; it fetches no more of that partition.
        KafkaError._AUTO_OFFSET_RESET,  # noqa: SLF001 - its public name has the underscore
    }
)


@dataclass(frozen=True, slots=True)
class Record:
    """One record; `timestamp` in milliseconds since 1970 UTC."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes | None
    headers: Headers
    timestamp: int


def silent(_error: KafkaError) -> None:
    """Ignore connection errors here: delivery reports and time-outs show them where they matter."""


def _record(message: RdMessage) -> Record:
    key: Any = message.key()
    headers: Any = message.headers()
    return Record(
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        key=key.encode() if isinstance(key, str) else key or b"",
        value=_bytes(message.value()),
        headers=[(name, _bytes(value) or b"") for name, value in headers] if headers else [],
        timestamp=message.timestamp()[1],
    )


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def patiently(ask: Callable[[], Any]) -> Any:
    """Ask again while a topic or a group that was just made has no leader yet, for ten seconds at the most."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return ask()
        except KafkaException as error:
            if (
                not error.args[0].retriable() and error.args[0].code() not in _NOT_YET
            ) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


Place = tuple[str, int]
"""Topic and partition."""


def good(messages: Iterable[RdMessage]) -> list[Record]:
    """Return the records that were read. Raises Unavailable when a partition can't be read any further."""
    records, gone = split(messages, _record)
    if gone:
        raise Unavailable(f"Kafka: an offset of {gone[0][0]}[{gone[0][1]}] isn't kept")
    return records


def split(
    messages: Iterable[RdMessage], make: Callable[[RdMessage], T]
) -> tuple[list[T], list[Place]]:
    """Return what `make` makes of what was read, and the partitions whose offset isn't kept. Raises Unavailable."""
    records: list[T] = []
    gone: list[Place] = []
    for message in messages:
        error = message.error()
        if error is None:
            records.append(make(message))
        elif error.fatal():
            raise Unavailable(f"Kafka: {error.str()}")
        elif error.code() in _OUT_OF_RANGE:
            gone.append((message.topic() or "", message.partition() or 0))
    return records, gone
