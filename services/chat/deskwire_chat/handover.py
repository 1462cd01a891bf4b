"""What happens when this process gains or loses a partition, in the order that keeps every promise."""

from __future__ import annotations

from collections.abc import Sequence

from deskwire_chat.live.link import Links
from deskwire_chat.log.publisher import Publisher
from deskwire_chat.log.writer import LogWriter
from deskwire_chat.routing.reader import AgentReader
from deskwire_chat.routing.router import Router
from deskwire_chat.store.partitions import Partition
from deskwire_chat.streams.watch import Watchers


class Handover:
    """Notifies every part of chat that keeps something about a partition (ownership.Duties)."""

    def __init__(
        self,
        writer: LogWriter,
        publisher: Publisher,
        router: Router,
        reader: AgentReader,
        links: Links,
        watchers: Watchers,
    ) -> None:
        self._writer = writer
        self._publisher = publisher
        self._router = router
        self._reader = reader
        self._links = links
        self._watchers = watchers

    def gained(self, owned: Sequence[Partition]) -> None:
        """Begin with what the database has, and with nothing older."""
        numbers = {partition.id for partition in owned}
        self._writer.forget_partitions(numbers)
        self._publisher.own(owned)
        self._reader.gained(numbers)
        self._links.gained(numbers)

    def lost(self, gone: Sequence[Partition]) -> None:
        """Forget the partitions. Commands that wait in the writer's lanes are refused in their turn."""
        numbers = {partition.id for partition in gone}
        self._writer.forget_partitions(numbers)
        self._publisher.disown(numbers)
        self._watchers.lost(numbers)
        self._router.drop_partitions(numbers)

    async def finish(self, leaving: Sequence[Partition]) -> None:
        """Store what waits, then have Kafka take it, and keep how far Kafka is; no new commands are taken meanwhile."""
        numbers = {partition.id for partition in leaving}
        self._router.drop_partitions(numbers)
        await self._writer.finish()
        await self._publisher.finish(numbers)
        published = self._publisher.published(numbers)
        for partition in leaving:
            partition.published = published.get(partition.id, partition.published)
