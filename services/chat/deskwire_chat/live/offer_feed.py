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
from deskwire_chat.live.audience import Audience
from deskwire_chat.live.stream import Connection
from deskwire_chat.routing.offers import Offer
from deskwire_chat.routing.router import Router
from deskwire_chat.store import conversations, customers
from deskwire_common.db import AWAY, Database
from deskwire_common.loops import every
from deskwire_common.metrics import METRICS
from deskwire_wire.batches import encoded

_TICK_SECONDS: Final = 0.5
_CHUNK: Final = 200


class OfferPushes:
    """The open offers as their agents see them: those that were sent, and those that wait for it (OfferListener)."""

    def __init__(self, audience: Audience) -> None:
        self.unsent: dict[str, Offer] = {}
        self.wake = asyncio.Event()
        """Set: there is an offer to send."""
        self._audience = audience
        self._sent: dict[str, tuple[UserKey, frame_pb2.Push]] = {}

    def connected(self, connection: Connection) -> None:
        """Send a user who connected their open offers; offers that weren't sent to anybody yet are sent by `run`."""
        for user, push in self._sent.values():
            if user == connection.user:
                connection.put(encoded(push=push))

    def offered(self, offer: Offer) -> None:
        """Have an offer sent."""
        METRICS.offers.labels("offered").inc()
        self.unsent[offer.item.id] = offer
        self.wake.set()

    def offer_ended(self, offer: Offer, end: OfferEnd) -> None:
        """Tell the agent that an offer has ended."""
        METRICS.offers.labels(end.name.lower()).inc()
        conversation_id = offer.item.id
        self.unsent.pop(conversation_id, None)
        sent = self._sent.pop(conversation_id, None)
        if sent is not None:
            self._audience.deliver([sent[0]], views.frames.offer_ended(conversation_id, end))

    def send(self, offer: Offer, push: frame_pb2.Push) -> None:
        """Send an offer to its agent, now and whenever they connect while it is open."""
        user = (offer.item.tenant, int(ActorRole.AGENT), offer.agent_id)
        self._sent[offer.item.id] = user, push
        self._audience.deliver([user], encoded(push=push))


class OfferFeed:
    """Reads what offers show of their conversations, has them sent, and ends those that expire."""

    def __init__(
        self,
        db: Database,
        pushes: OfferPushes,
        router: Router,
        *,
        seconds: float,
        is_ours: Callable[[Conversation], bool],
    ) -> None:
        """`seconds`: how long an offer stands; 0: there are no offers. `is_ours`: whether this process may make one."""
        self._db = db
        self._pushes = pushes
        self._router = router
        self._seconds = seconds
        self._is_ours = is_ours

    async def run(self) -> None:
        """Send offers and end those that expired, until cancelled; outlasts a database that is away."""
        if not self._seconds:
            await asyncio.Event().wait()
        seconds = min(_TICK_SECONDS, self._seconds / 4)
        await every(
            seconds, self._round, failed="offers_not_sent", outlast=AWAY, wake=self._pushes.wake
        )

    async def _round(self) -> None:
        self._router.expire_offers()
        while self._pushes.unsent:
            await self._send(list(self._pushes.unsent.values())[:_CHUNK])

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
            if self._pushes.unsent.get(conversation_id) is not offer:
                continue  # it ended meanwhile
            del self._pushes.unsent[conversation_id]
            conversation = found.get(conversation_id)
            if (
                conversation is None
                or conversation.state != State.QUEUED
                or not self._is_ours(conversation)
            ):
                # A commit in doubt succeeded after all, or the next owner makes the offer.
                self._router.dequeue(offer.item.tenant, conversation_id)
                continue
            customer = known.get(conversation.customer_id)
            push = views.frames.offer_push(conversation, customer, offer.expires_at)
            self._pushes.send(offer, push)
