"""Conversations whose last commit is in doubt: its answer was lost, so nobody did what follows a commit.

The messages that it may have stored were pushed to nobody, what it may have opened waits in no queue, and what it may
have given or taken isn't counted at its agent. All of that is done here from what the database has, once the
transaction has ended: it harms nothing where the commit failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Final

from deskwire.gateway.v1 import frame_pb2
from deskwire_chat import views
from deskwire_chat.domain.actors import ActorRole, UserKey
from deskwire_chat.domain.conversations import Conversation, State, participants, partition_of
from deskwire_chat.domain.customers import Customer
from deskwire_chat.domain.work import work_item_of
from deskwire_chat.live.audience import Audience
from deskwire_chat.routing.offers import AgentKey
from deskwire_chat.routing.router import Router
from deskwire_chat.store import conversations, customers, partitions
from deskwire_chat.store.unread import Reader, unread
from deskwire_common.db import AWAY, Database
from deskwire_common.logging import get_logger
from deskwire_common.loops import every

_RETRY_SECONDS: Final = 1.0
_CHUNK: Final = 100


class Doubts:
    """Makes up for what wasn't done after commits in doubt."""

    def __init__(
        self,
        db: Database,
        audience: Audience,
        router: Router,
        *,
        is_ours: Callable[[Conversation], bool],
    ) -> None:
        """`is_ours`: whether this process owns a conversation, so that its routing may give it to somebody."""
        self._db = db
        self._audience = audience
        self._router = router
        self._is_ours = is_ours
        self._doubtful: dict[str, set[AgentKey]] = {}
        self._wake = asyncio.Event()

    def note(self, conversation_ids: Iterable[str], agents: Iterable[AgentKey]) -> None:
        """Make up for a commit about these conversations, which had or got these agents."""
        for conversation_id in conversation_ids:
            self._doubtful.setdefault(conversation_id, set()).update(agents)
        self._wake.set()

    async def run(self) -> None:
        """Make up for commits until cancelled; outlasts a database that is away."""
        await every(
            _RETRY_SECONDS, self._round, failed="doubts_not_settled", outlast=AWAY, wake=self._wake
        )

    async def _round(self) -> None:
        while self._doubtful:
            some = dict(list(self._doubtful.items())[:_CHUNK])
            for conversation_id in some:
                del self._doubtful[conversation_id]
            try:
                await self._settle(some)
            except BaseException:
                for conversation_id, agents in some.items():
                    self._doubtful.setdefault(conversation_id, set()).update(agents)
                raise

    async def _settle(self, some: Mapping[str, set[AgentKey]]) -> None:
        numbers = sorted({partition_of(each) for each in some})
        await self._db.run(partial(partitions.wait_for_commits, numbers))
        async with self._db.read() as c:
            found = await conversations.get_many(c, list(some))
            readers = [reader for item in found for reader in self._connected(item)]
            counts = await unread(c, readers)
            known: dict[str, Customer] = {}
            for tenant in {item.tenant for item in found}:
                ids = {item.customer_id for item in found if item.tenant == tenant}
                known |= await customers.get_many(c, tenant, sorted(ids))
        get_logger().info("doubts_settled", conversations=len(found))
        for item in found:
            self._tell_agents(item, some[item.conversation_id])
        for reader, count in counts.items():
            item = next(each for each in found if each.conversation_id == reader.conversation_id)
            of = None if reader.role == ActorRole.VISITOR else known.get(item.customer_id)
            frames = views.frames.heads(item, of, count)
            user: UserKey = (item.tenant, reader.role, reader.subject)
            self._audience.deliver([user], frame_pb2.Batch(frames=frames).SerializeToString())

    def _connected(self, item: Conversation) -> list[Reader]:
        return [
            Reader(item.conversation_id, role, subject, item.head_seq)
            for tenant, role, subject in participants(item)
            if self._audience.connections_of((tenant, role, subject))
        ]

    def _tell_agents(self, item: Conversation, agents: Collection[AgentKey]) -> None:
        """Bring routing up to date, and tell those who may have lost a conversation."""
        if item.state == State.QUEUED and self._is_ours(item):
            self._router.enqueue(work_item_of(item))
        if item.state != State.QUEUED:
            self._router.dequeue(item.tenant, item.conversation_id)
        gone = [(tenant, role, agent_id) for tenant, agent_id in agents if agent_id != item.agent_id
                for role in (int(ActorRole.AGENT), int(ActorRole.BOT))]  # fmt: skip
        self._audience.deliver(gone, views.frames.conversation_push(item))
        for key in {*agents, (item.tenant, item.agent_id)}:
            self._router.doubt(key)
