"""What runs beside the calls: who was disabled is shut out, and what they or lost bots have goes back to the queue."""

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
"""How long this process may take to notice what another one disabled; the contract allows 5 s."""


class AdmissionKeeper:
    """Tells admission who is disabled, ends what they have open, and puts disabled agents' conversations back."""

    def __init__(
        self,
        db: Database,
        admission: Admission,
        expel: Sequence[Callable[[], None]],
        conversation_actions: ConversationActions,
        ownership: Ownership,
    ) -> None:
        """`expel` ends the connections, and the streams, of all who aren't let in any more."""
        self._db = db
        self._ownership = ownership
        self._admission = admission
        self._expel = expel
        self._conversations = conversation_actions
        # One look at a time: a later one must not be overwritten by an earlier.
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
        """Read at once, as somebody was disabled or enabled. What fails is done again by `run`."""
        with suppress(*AWAY):
            await self.load()
        self._asked.set()

    async def run(self) -> None:
        """Look every few seconds until cancelled; outlasts a database that is away."""
        await every(
            _LOOK_SECONDS, self._round, failed="admission_not_kept", outlast=AWAY, wake=self._asked
        )

    async def _round(self) -> None:
        await self.load()
        await self._put_back()

    async def _put_back(self) -> None:
        """Also after a restart between the disabling and this, and for what routing gave away at the same moment."""
        async with self._db.read() as c:
            found = await conversations.of_disabled_agents(c)
        for conversation_id, agent_id in found:
            # The others are their owners' to put back.
            if self._ownership.term_of(partition_of(conversation_id)):
                await self._conversations.put_back(conversation_id, agent_id)


class BotKeeper:
    """Puts the conversations of bots that are gone back into the queue, for people: none is left alone."""

    def __init__(
        self,
        db: Database,
        router: Router,
        conversation_actions: ConversationActions,
        ownership: Ownership,
        *,
        away_seconds: float,
    ) -> None:
        """`away_seconds`: how long a bot may be without a connection that is open and not only parked."""
        self._db = db
        self._router = router
        self._conversations = conversation_actions
        self._ownership = ownership
        self._seconds = away_seconds

    async def run(self) -> None:
        """Look every second until cancelled; outlasts a database that is away."""
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
            # The others are their owners' to put back, and some bot may have come meanwhile.
            is_ours = self._ownership.term_of(partition_of(conversation_id)) > 0
            if is_ours and not self._router.agents.is_connected(tenant, bot):
                await self._conversations.put_back(conversation_id, bot)
