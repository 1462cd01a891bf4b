"""Removes the bytes of attachments that were redacted, or never sent; beside the path of messages.

What is to go is marked in the table by the transaction that decided it (`remove_at`), so a crash loses nothing. One
process does it; two that overlap for a moment remove the same thing twice, which harms nothing.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from deskwire_chat.attachments.base import AttachmentStore
from deskwire_chat.domain.attachments import UNSENT_SECONDS, Attachment, AttachmentState
from deskwire_chat.store import attachments
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database
from deskwire_common.errors import DeskwireError
from deskwire_common.leadership import Lease, lead
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS

LEADER: Final = "attachments"
POLL_SECONDS: Final = 2.0
SWEEP_SECONDS: Final = 3600.0
_RETRY_SECONDS: Final = 5.0
_ROUND: Final = 50


class Remover:
    """See the module."""

    def __init__(self, db: Database, store: AttachmentStore, clock: Clock) -> None:
        self._db = db
        self._store = store
        self._clock = clock
        self._swept = float("-inf")

    async def run(self) -> None:
        """Lead and remove until cancelled; outlasts a database or a store that is away."""
        while True:
            try:
                async with lead(self._db, LEADER, poll=POLL_SECONDS) as lease:
                    await self._lead(lease)
            except (DeskwireError, SQLAlchemyError) as error:
                get_logger().warning("attachments_not_removed", error=type(error).__name__)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _lead(self, lease: Lease) -> None:
        while lease.held:
            if self._clock.monotonic() - self._swept >= SWEEP_SECONDS:
                # An upload may take as long as an attachment waits to be sent, and no longer.
                await self._store.sweep(before=self._clock.now().timestamp() - UNSENT_SECONDS)
                self._swept = self._clock.monotonic()
            if not await self.round():
                await asyncio.sleep(POLL_SECONDS)

    async def round(self) -> bool:
        """Remove the next of what is due; whether there may be more. Raises Unavailable."""
        now = to_micros(self._clock.now())
        async with self._db.read() as c:
            due = await attachments.due(c, now=now, limit=_ROUND)
        for item in due:
            if await self._claimed(item):
                await self._store.remove(item)
                await self._db.run(partial(attachments.forget, ids=[item.attachment_id]))
                METRICS.attachments_removed.inc()
        return len(due) == _ROUND

    async def _claimed(self, item: Attachment) -> bool:
        """From here on no message can carry it."""
        if item.state == AttachmentState.REMOVED:
            return True
        return await self._db.run(partial(attachments.claim, item=item))
