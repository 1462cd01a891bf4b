"""Supervises the sources of this process: each is a slot, which one process follows, or clears away once deleted."""

from __future__ import annotations

import asyncio
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_cdc import store
from deskwire_cdc.domain.sources import Source
from deskwire_cdc.follower import Follower, Parts
from deskwire_cdc.sources import open_reader
from deskwire_common.errors import DeskwireError
from deskwire_common.logging import get_logger
from deskwire_common.ownership import Held

KIND: Final = "source"


class Supervisor:
    """Works on the sources whose slots this process owns."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._deleted: dict[str, asyncio.Event] = {}
        """By incarnation: set when a source is deleted that this process works on."""

    async def ids(self, connection: AsyncConnection) -> list[str]:
        """Return the slots of all sources, the deleted ones too: what was installed in them has to be removed."""
        live, deleted = await store.sources.every(connection)
        for source in deleted:
            if source.incarnation in self._deleted:
                self._deleted[source.incarnation].set()
        return [source.incarnation for source in (*live, *deleted)]

    async def work(self, held: Held) -> None:
        """Follow a source until it is deleted, and then clear away what was installed in it."""
        async with self._parts.db.read() as connection:
            live, deleted = await store.sources.every(connection)
        for source in live:
            if source.incarnation == held.id:
                await self._follow(source, held)
        for source in deleted:
            if source.incarnation == held.id:
                await self._clear_away(source)

    async def _follow(self, source: Source, held: Held) -> None:
        deleted = self._deleted[held.id] = asyncio.Event()
        tasks = {
            asyncio.create_task(
                Follower(source, self._parts, held).run(), name=f"source-{source.aggregate_id}"
            ),
            asyncio.create_task(deleted.wait()),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._deleted[held.id]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _clear_away(self, source: Source) -> None:
        reader = open_reader(source, self._parts.options)
        try:
            await reader.remove()
            await self._parts.db.run(lambda uow: store.sources.forget(uow, source))
        except (OSError, DeskwireError) as error:
            # It is tried again.
            get_logger().warning("source_not_cleared", source=source.aggregate_id, error=str(error))
        finally:
            await reader.close()
