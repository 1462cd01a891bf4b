"""Work beside the calls: disabled users are shut out, and what they or absent agents have goes back to the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from deskwire_chat.actions.conversations import ConversationActions
from deskwire_chat.domain.conversations import TransferCause, partition_of
from deskwire_chat.live.admission import Admission
from deskwire_chat.owners.ownership import Ownership
from deskwire_chat.routing.router import Router
from deskwire_chat.store import agents, conversations, tenants
from deskwire_chat.store.conversations import HeldConversation
from deskwire_common.db import AWAY, CommitInDoubt, ConnectionLost, Database
from deskwire_common.errors import DeskwireError
from deskwire_common.logging import get_logger
from deskwire_common.loops import every
from deskwire_common.metrics import METRICS

_ABSENT_SECONDS: Final = 1.0
_ABSENT_CHUNK: Final = 100
_KINDS: Final = {True: "bot", False: "agent"}
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
                await self._conversations.put_back(
                    conversation_id, agent_id, TransferCause.AGENT_DISABLED
                )


class AbsenceKeeper:
    """Puts conversations of agents and bots that are gone back into the queue, for people, so that none is left alone.

    Each process does this for the conversations that it owns, by the connections that it sees: agents and bots are
    attached to every process, so the next owner knows since when they are gone.
    """

    def __init__(
        self,
        db: Database,
        router: Router,
        conversation_actions: ConversationActions,
        ownership: Ownership,
        *,
        bot_seconds: float,
        agent_seconds: float,
    ) -> None:
        """How long bots, and people, may be without a connection that is open, not just parked; 0: for ever."""
        self._db = db
        self._router = router
        self._conversations = conversation_actions
        self._ownership = ownership
        self._seconds = {True: bot_seconds, False: agent_seconds}

    async def run(self) -> None:
        """Look for lost agents and bots every second until cancelled; outlasts a database that is away."""
        shortest = min((each for each in self._seconds.values() if each), default=_ABSENT_SECONDS)
        seconds = min(_ABSENT_SECONDS, shortest / 2)
        await every(seconds, self._round, failed="absent_not_kept", outlast=AWAY, at_once=False)

    async def _round(self) -> None:
        absent = self._router.agents.absent()
        keys = list(absent)
        waiting = {True: 0, False: 0}
        for start in range(0, len(keys), _ABSENT_CHUNK):
            async with self._db.read() as c:
                found = await conversations.of_agents(c, keys[start : start + _ABSENT_CHUNK])
            for each in found:
                # The owners of the others count and put back those.
                if self._ownership.term_of(partition_of(each.conversation_id)) and not (
                    await self._put_back(each, absent[each.tenant, each.agent_id])
                ):
                    waiting[each.bot] += 1
        for bot, count in waiting.items():
            METRICS.conversations_of_absent.labels(_KINDS[bot]).set(count)

    async def _put_back(self, held: HeldConversation, gone_since: int) -> bool:
        """Put a conversation back if its agent has been gone, with it, for too long."""
        seconds = self._seconds[held.bot]
        # Whoever is given one while they are gone has as long to come for it.
        since = max(gone_since, held.assigned_at)
        if not seconds or self._router.agents.now() - since < seconds * 1_000_000:
            return False
        try:
            return await self._conversations.put_back(
                held.conversation_id,
                held.agent_id,
                TransferCause.AGENT_ABSENT,
                unless=partial(self._router.agents.is_connected, held.tenant, held.agent_id),
            )
        except (ConnectionLost, CommitInDoubt):
            raise
        except DeskwireError as error:
            # The others needn't wait for it.
            get_logger().warning(
                "not_put_back", conversation_id=held.conversation_id, error=str(error)
            )
            return False
