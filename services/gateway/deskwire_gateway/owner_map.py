"""The owner map: which shard of chat owns a conversation, and the link to it.

Chat reports who owns what, and under which term; of two reports the one with the later term counts.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from deskwire.shard.v1 import shard_service_pb2 as pb
from deskwire_gateway.link import Link


@dataclass(frozen=True, slots=True)
class _Owned:
    """The owner of a partition."""

    term: int
    address: str


class OwnerMap:
    """What this worker knows of the shards."""

    def __init__(self) -> None:
        self.links: dict[str, Link] = {}
        """Address → the open link to that shard."""
        self.addresses: set[str] = set()
        """All living shards, by the last reports."""
        self.changed = asyncio.Event()
        """Set when shards or links have changed."""
        self._reports: dict[Link, set[str]] = {}
        self._owned: dict[int, _Owned] = {}
        self._partitions = 1

    def owner_of(self, number: int) -> tuple[Link, int] | None:
        """Return the open link to the owner of a conversation (CRC-32 of its id), and the term; None without one."""
        owned = self._owned.get(number % self._partitions)
        if owned is None:
            return None
        link = self.links.get(owned.address)
        return None if link is None else (link, owned.term)

    def term_at(self, number: int, address: str) -> int:
        """Return the term under which a shard owns a conversation, 0 when it doesn't."""
        owned = self._owned.get(number % self._partitions)
        return owned.term if owned is not None and owned.address == address else 0

    def any_link(self) -> Link | None:
        """Return an open link to any shard."""
        return next(iter(self.links.values()), None)

    def is_in(self, number: int, partitions: set[int]) -> bool:
        """Return whether a conversation is in one of some partitions."""
        return number % self._partitions in partitions

    def update(self, link: Link, owners: pb.Owners) -> set[int]:
        """Take a shard's report in; return the partitions that have another owner or term."""
        self._reports[link] = {shard.address for shard in owners.shards}
        self.addresses = set().union(*self._reports.values())
        self._partitions = owners.partition_count or self._partitions
        moved: set[int] = set()
        for shard in owners.shards:
            for partition in shard.partitions:
                if self._is_news(partition, shard.address, owners.address):
                    self._owned[partition.number] = _Owned(partition.term, shard.address)
                    moved.add(partition.number)
        self.changed.set()
        return moved

    def forget_reports(self, link: Link) -> None:
        """Forget the reports of a link that has ended; the known owners stay."""
        self._reports.pop(link, None)
        if self._reports:
            self.addresses = set().union(*self._reports.values())

    def _is_news(self, partition: pb.OwnedPartition, address: str, reporter: str) -> bool:
        known = self._owned.get(partition.number)
        if known is None or partition.term > known.term:
            return True
        # A database that was restored from a backup has older terms.
        return (
            partition.term < known.term and address == reporter and known.address not in self.links
        )
