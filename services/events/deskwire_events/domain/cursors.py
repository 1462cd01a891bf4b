"""Cursors of unnamed streams: opaque to clients, signed, and bound to one tenant."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from deskwire.common.v1 import error_reason_pb2
from deskwire_common.errors import InvalidArgument

Place: TypeAlias = tuple[str, int]
"""Topic and partition."""

_VERSION: Final = b"\x02"
_MAC: Final = 12
_CLUSTER: Final = 6
_ALIAS: Final = 6
_MAX_PARTITIONS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Cursor:
    """The next offset of every partition that a stream reads; `ours`: it is of this Kafka cluster."""

    places: Mapping[Place, int]
    ours: bool = True


class Cursors:
    """Makes and reads cursors of one cluster. `secret` is the same for all hubs of a database.

    A topic is a keyed digest of six bytes, an offset one to nine bytes, so that forty partitions take some 200
    characters, and nobody learns the name of a topic.
    """

    def __init__(self, secret: bytes, cluster: str) -> None:
        self._secret = secret
        self._cluster = hashlib.sha256(cluster.encode()).digest()[:_CLUSTER]
        self._aliases: dict[tuple[str, str], bytes] = {}

    def encode(self, tenant: str, places: Mapping[Place, int]) -> str:
        """The cursor as text."""
        by_topic: dict[str, dict[int, int]] = {}
        for (topic, partition), offset in places.items():
            by_topic.setdefault(topic, {})[partition] = offset
        body = bytearray(_VERSION + self._cluster)
        for topic, partitions in by_topic.items():
            body += self._alias(tenant, topic)
            count = max(partitions) + 1
            _put(body, count)
            for partition in range(count):
                _put(body, partitions.get(partition, -1) + 1)
        return base64.urlsafe_b64encode(bytes(body) + self._mac(tenant, body)).rstrip(b"=").decode()

    def decode(self, text: str, tenant: str, topics: Collection[str]) -> Cursor:
        """The cursor that a text says; places in none of `topics` are left out.

        Raises InvalidArgument (INVALID_CURSOR) for a text that this tenant was never given.
        """
        try:
            raw = text.encode("ascii")
            data = base64.b64decode(raw + b"=" * (-len(raw) % 4), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error) as error:
            raise _no_cursor() from error
        body, mac = data[:-_MAC], data[-_MAC:]
        if not body.startswith(_VERSION) or not hmac.compare_digest(mac, self._mac(tenant, body)):
            raise _no_cursor()
        ours = body[1 : 1 + _CLUSTER] == self._cluster
        known = {self._alias(tenant, topic): topic for topic in topics}
        places: dict[Place, int] = {}
        at = 1 + _CLUSTER
        while at < len(body):
            topic = known.get(bytes(body[at : at + _ALIAS]))
            count, at = _get(body, at + _ALIAS)
            for partition in range(min(count, _MAX_PARTITIONS)):
                offset, at = _get(body, at)
                if offset and topic is not None:
                    places[topic, partition] = offset - 1
        return Cursor(places, ours)

    def _mac(self, tenant: str, body: bytes | bytearray) -> bytes:
        return hmac.digest(self._secret, tenant.encode() + b"\0" + body, "sha256")[:_MAC]

    def _alias(self, tenant: str, topic: str) -> bytes:
        found = self._aliases.get((tenant, topic))
        if found is None:
            if len(self._aliases) > 100_000:
                self._aliases.clear()
            text = f"{tenant}\0{topic}".encode()
            found = hashlib.blake2b(text, key=self._secret[:64], digest_size=_ALIAS).digest()
            self._aliases[tenant, topic] = found
        return found


def _put(body: bytearray, value: int) -> None:
    while value > 127:
        body.append(value & 127 | 128)
        value >>= 7
    body.append(value)


def _get(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _no_cursor() -> InvalidArgument:
    return InvalidArgument(
        "the cursor was not made by Subscribe for this tenant",
        reason=error_reason_pb2.ERROR_REASON_INVALID_CURSOR,
        field="start.cursor",
    )
