"""Work beside the calls: disabled users are shut out, and conversations of theirs or of lost bots are put back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from deskwire_chat.actions.conversations import ConversationActions
from deskwire_chat.domain.conversations import partition_of
from deskwire_chat.live.admission import Admission
from deskwire_chat.owners.ownership import Ownership
from deskwire_chat.routing.offers import AgentKey
from deskwire_chat.routing.router import Router
from deskwire_chat.store import agents, conversations, tenants
from deskwire_common.db import AWAY, Database
from deskwire_common.loops import every

_BOTS_SECONDS: Final = 1.0
_BOTS_CHUNK: Final = 500
_LOOK_SECONDS: Final = 3.0
"""How long this process may take to notice what another process disabled; the contract allows 5 s."""


class AdmissionKeeper:
    """Keeps admission current, ends what disabled users have open, and puts disabled agents' conversations back."""

    def __init__(
        self,
        db: Database,
        admission: Admission,
        expel: Sequence[Callable[[], None]],
        conversation_actions: ConversationActions,
        ownership: Ownership,
    ) -> None:
        """`expel` ends the connections, and the streams, of all who aren't admitted any more."""
        self._db = db
        self._ownership = ownership
        self._admission = admission
        self._expel = expel
        self._conversations = conversation_actions
        # One read at a time: an earlier one must not overwrite a later one.
        self._looking = asyncio.Lock()
        self._asked = asyncio.Event()

    async def load(self) -> None:
        """Read who is disabled. Raises Unavailable."""
        async with self._looking:
            async with self._db.read() as c:
                shut = await tenants.disabled(c), await agents.disabled(c)
            if self._admission.update(*shut):
                for expel in self._expel:
                    expel()

    async def look(self) -> None:
        """Read at once, as somebody was disabled or enabled. If that fails, `run` does it again."""
        with suppress(*AWAY):
            await self.load()
        self._asked.set()

    async def run(self) -> None:
        """Read every few seconds until cancelled; outlasts a database that is away."""
        await every(
            _LOOK_SECONDS, self._round, failed="admission_not_kept", outlast=AWAY, wake=self._asked
        )

    async def _round(self) -> None:
        await self.load()
        await self._put_back()

    async def _put_back(self) -> None:
        """Put back what disabled agents have: also after a restart, and what routing gave them at the same moment."""
        async with self._db.read() as c:
            found = await conversations.of_disabled_agents(c)
        for conversation_id, agent_id in found:
            # The owners of the others put those back.
            if self._ownership.term_of(partition_of(conversation_id)):
                await self._conversations.put_back(conversation_id, agent_id)


class BotKeeper:
    """Puts conversations of bots that are gone back into the queue, for people, so that none is left alone."""

    def __init__(
        self,
        db: Database,
        router: Router,
        conversation_actions: ConversationActions,
        ownership: Ownership,
        *,
        away_seconds: float,
    ) -> None:
        """`away_seconds`: how long a bot may be without a connection that is open, not just parked."""
        self._db = db
        self._router = router
        self._conversations = conversation_actions
        self._ownership = ownership
        self._seconds = away_seconds

    async def run(self) -> None:
        """Look for lost bots every second until cancelled; outlasts a database that is away."""
        seconds = min(_BOTS_SECONDS, self._seconds / 2)
        await every(seconds, self._round, failed="bots_not_kept", outlast=AWAY, at_once=False)

    async def _round(self) -> None:
        gone = self._router.agents.bots_gone(self._seconds)
        for start in range(0, len(gone), _BOTS_CHUNK):
            await self._put_back(gone[start : start + _BOTS_CHUNK])

    async def _put_back(self, gone: Sequence[AgentKey]) -> None:
        async with self._db.read() as c:
            found = await conversations.of_bots(c, gone)
        for conversation_id, tenant, bot in found:
            # The owners of the others put those back, and a bot may have connected meanwhile.
            is_ours = self._ownership.term_of(partition_of(conversation_id)) > 0
            if is_ours and not self._router.agents.is_connected(tenant, bot):
                await self._conversations.put_back(conversation_id, bot)
