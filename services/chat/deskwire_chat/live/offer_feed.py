"""Offers on their way to agents: sent with the customer, sent again after a reconnect, and ended when they expire.

They are in memory only, as the queue is: a conversation whose owner dies still waits, and the next owner offers it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from deskwire.gateway.v1 import frame_pb2
from deskwire_chat import views
from deskwire_chat.domain.actors import ActorRole, UserKey
from deskwire_chat.domain.agents import OfferEnd
from deskwire_chat.domain.conversations import Conversation, State
from deskwire_chat.domain.customers import Customer
from deskwire_chat.live.connections import Connection, Connections
from deskwire_chat.routing.offers import Offer
from deskwire_chat.routing.router import Router
from deskwire_chat.store import conversations, customers
from deskwire_common.db import AWAY, Database
from deskwire_common.loops import every
from deskwire_common.metrics import METRICS
from deskwire_wire.batches import encoded

_TICK_SECONDS: Final = 0.5
_CHUNK: Final = 200


class OfferFeed:
    """Sends agents their offers."""

    def __init__(
        self,
        db: Database,
        connections: Connections,
        router: Router,
        *,
        seconds: float,
        is_ours: Callable[[Conversation], bool],
    ) -> None:
        """`seconds`: how long an offer stands; 0: there are no offers. `is_ours`: whether this process may make one."""
        self._db = db
        self._connections = connections
        self._router = router
        self._seconds = seconds
        self._is_ours = is_ours
        self._unsent: dict[str, Offer] = {}
        self._sent: dict[str, tuple[UserKey, frame_pb2.Push]] = {}
        self._wake = asyncio.Event()

    def connected(self, connection: Connection) -> None:
        """Send a user who connected their open offers; offers that weren't sent to anybody yet are sent by `run`."""
        for user, push in self._sent.values():
            if user == connection.user:
                connection.put(encoded(push=push))

    async def run(self) -> None:
        """Send offers and end those that expired, until cancelled; outlasts a database that is away."""
        if not self._seconds:
            await asyncio.Event().wait()
        seconds = min(_TICK_SECONDS, self._seconds / 4)
        await every(seconds, self._round, failed="offers_not_sent", outlast=AWAY, wake=self._wake)

    async def _round(self) -> None:
        self._router.expire_offers()
        while self._unsent:
            await self._send(list(self._unsent.values())[:_CHUNK])

    def offered(self, offer: Offer) -> None:
        """Have an offer sent (routing.offers.OfferListener)."""
        METRICS.offers.labels("offered").inc()
        self._unsent[offer.item.id] = offer
        self._wake.set()

    def offer_ended(self, offer: Offer, end: OfferEnd) -> None:
        """Tell the agent that an offer has ended (routing.offers.OfferListener)."""
        METRICS.offers.labels(end.name.lower()).inc()
        conversation_id = offer.item.id
        self._unsent.pop(conversation_id, None)
        sent = self._sent.pop(conversation_id, None)
        if sent is not None:
            self._connections.deliver([sent[0]], views.frames.offer_ended(conversation_id, end))

    async def _send(self, offers: list[Offer]) -> None:
        tenants: dict[str, set[str]] = {}
        known: dict[str, Customer] = {}
        async with self._db.read() as c:
            found: dict[str, Conversation] = {
                each.conversation_id: each
                for each in await conversations.get_many(c, [offer.item.id for offer in offers])
            }
            for each in found.values():
                tenants.setdefault(each.tenant, set()).add(each.customer_id)
            for tenant, ids in tenants.items():
                known |= await customers.get_many(c, tenant, sorted(ids))
        for offer in offers:
            conversation_id = offer.item.id
            if self._unsent.get(conversation_id) is not offer:
                continue  # it ended meanwhile
            del self._unsent[conversation_id]
            conversation = found.get(conversation_id)
            if (
                conversation is None
                or conversation.state != State.QUEUED
                or not self._is_ours(conversation)
            ):
                # A commit in doubt succeeded after all, or the next owner makes the offer.
                self._router.dequeue(offer.item.tenant, conversation_id)
                continue
            user = (offer.item.tenant, int(ActorRole.AGENT), offer.agent_id)
            push = views.frames.offer_push(
                conversation, known.get(conversation.customer_id), offer.expires_at
            )
            self._sent[conversation_id] = user, push
            self._connections.deliver([user], encoded(push=push))
