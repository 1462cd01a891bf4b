"""Conversations whose last commit is in doubt: its answer was lost, so nobody did what follows a commit.

The messages that it may have stored were pushed to nobody, what it may have opened waits in no queue, and what it may
have given or taken isn't counted at its agent. All of that is done here from what the database has, once the
transaction has ended: it harms nothing where the commit failed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable
from functools import partial

from deskwire.gateway.v1 import frame_pb2
from deskwire_chat import views
from deskwire_chat.domain.actors import ActorRole, UserKey
from deskwire_chat.domain.conversations import Conversation, State, partition_of
from deskwire_chat.domain.customers import Customer
from deskwire_chat.domain.work import work_item_of
from deskwire_chat.live.audience import Audience
from deskwire_chat.live.unread_feed import readers_of
from deskwire_chat.routing.offers import AgentKey
from deskwire_chat.routing.router import Router
from deskwire_chat.store import conversations, customers, partitions
from deskwire_chat.store.unread import unread
from deskwire_common.backlog import Backlog
from deskwire_common.db import AWAY, Database
from deskwire_common.logging import get_logger


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
        self._doubtful = Backlog[str, frozenset[AgentKey]](
            self._settle, join=operator.or_, failed="doubts_not_settled", outlast=AWAY
        )

    def note(self, conversation_id: str, agents: Iterable[AgentKey]) -> None:
        """Make up for a commit about a conversation, which these agents had or got."""
        self._doubtful.add(conversation_id, frozenset(agents))

    async def run(self) -> None:
        """Make up for commits until cancelled; outlasts a database that is away."""
        await self._doubtful.run()

    async def _settle(self, some: dict[str, frozenset[AgentKey]]) -> None:
        numbers = sorted({partition_of(each) for each in some})
        await self._db.run(partial(partitions.wait_for_commits, numbers))
        async with self._db.read() as c:
            found = await conversations.get_many(c, list(some))
            readers = [each for item in found for _, each in readers_of(self._audience, item)]
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

    def _tell_agents(self, item: Conversation, agents: Collection[AgentKey]) -> None:
        """Bring routing up to date, and tell those who may have lost a conversation."""
        if item.state != State.QUEUED:
            self._router.dequeue(item.tenant, item.conversation_id)
        elif self._is_ours(item):
            self._router.enqueue(work_item_of(item))
        gone: list[UserKey] = [
            (tenant, int(role), agent_id)
            for tenant, agent_id in agents
            for role in (ActorRole.AGENT, ActorRole.BOT)
            if tenant == item.tenant and agent_id != item.agent_id
        ]
        self._audience.deliver(gone, views.frames.conversation_push(item))
        for key in {*agents, (item.tenant, item.agent_id)}:
            self._router.doubt(key)
