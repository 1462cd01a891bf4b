"""Removes the bytes of attachments that were redacted or never sent, beside the path of messages.

The transaction that decides on a removal marks it in the table (`remove_at`), so a crash loses nothing. One process
removes; two that overlap for a moment remove the same object twice, which harms nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from deskwire_chat.attachments.base import AttachmentStore
from deskwire_chat.domain.attachments import UNSENT_SECONDS, Attachment, AttachmentState
from deskwire_chat.store import attachments
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database
from deskwire_common.metrics import METRICS
from deskwire_common.ownership import Held

POLL_SECONDS: Final = 2.0
SWEEP_SECONDS: Final = 3600.0
_ROUND: Final = 50


class Remover:
    """The work of one slot; see the module."""

    KIND: Final = "attachments"

    def __init__(self, db: Database, store: AttachmentStore, clock: Clock) -> None:
        self._db = db
        self._store = store
        self._clock = clock
        self._swept = float("-inf")

    async def work(self, held: Held) -> None:
        """Remove while the slot is held. Raises errors of the database and the store."""
        while held.is_held:
            if self._clock.monotonic() - self._swept >= SWEEP_SECONDS:
                # An upload may take only as long as an attachment waits to be sent.
                await self._store.sweep(before=self._clock.now().timestamp() - UNSENT_SECONDS)
                self._swept = self._clock.monotonic()
            if not await self.round():
                await held.wait(POLL_SECONDS)

    async def round(self) -> bool:
        """Remove the next attachments that are due; whether there may be more. Raises Unavailable."""
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
        """Mark an attachment so that no message can carry it any more."""
        if item.state == AttachmentState.REMOVED:
            return True
        return await self._db.run(partial(attachments.claim, item=item))
