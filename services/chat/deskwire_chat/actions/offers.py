"""The use cases of offers: agents accept or decline them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deskwire.chat.v1 import agent_service_pb2 as agents_pb
from deskwire_chat import domain, views
from deskwire_chat.actions.agents import AGENTS
from deskwire_chat.actions.tools import Tools
from deskwire_chat.domain.conversations import Conversation
from deskwire_chat.log.commands import Give
from deskwire_chat.log.writer import LogWriter
from deskwire_chat.routing.router import Router
from deskwire_common.auth import acting_as, current_principal
from deskwire_common.db import UnitOfWork


@dataclass(frozen=True, slots=True)
class OfferActions:
    """The use cases of offers, at the owner of the conversation."""

    tools: Tools
    router: Router
    writer: LogWriter

    async def accept(self, request: agents_pb.AcceptOfferRequest) -> agents_pb.AcceptOfferResponse:
        """Take the conversation that is offered to the caller.

        Raises NotFound (OFFER_NOT_FOUND), FailedPrecondition (AGENT_UNAVAILABLE), RequestIdReused, NotOwner.
        """
        principal = current_principal()
        conversation_id = request.conversation_id.lower()

        async def once(uow: UnitOfWork, give: Give) -> agents_pb.AcceptOfferResponse:
            async def work() -> agents_pb.AcceptOfferResponse:
                return agents_pb.AcceptOfferResponse(
                    conversation=views.messages.conversation(await give())
                )

            with acting_as(principal):
                return await self.tools.idempotency.execute(
                    uow, method=f"{AGENTS}/AcceptOffer", request=request, work=work
                )

        async def nothing() -> Conversation:
            raise domain.agents.offer_not_found(conversation_id)

        async def again(uow: UnitOfWork, _item: Conversation | None) -> Any:
            return await once(uow, nothing)

        offer = self.router.claim_offer(principal.tenant, conversation_id, principal.subject)
        agent = self.router.agents.get((principal.tenant, principal.subject))
        if offer is None or agent is None:
            # In the conversation's order, so after an Accept of the same request that is under way.
            result: agents_pb.AcceptOfferResponse = await self.writer.alter(conversation_id, again)
        else:
            result = await self.writer.accept(offer.item, agent, once)
        return result

    async def decline(
        self, request: agents_pb.DeclineOfferRequest
    ) -> agents_pb.DeclineOfferResponse:
        """Leave the conversation to others. Raises NotFound (OFFER_NOT_FOUND), RequestIdReused."""
        principal = current_principal()
        offered = (principal.tenant, request.conversation_id.lower(), principal.subject)
        declined: list[bool] = []

        async def work(_uow: UnitOfWork) -> agents_pb.DeclineOfferResponse:
            if self.router.open_offer(*offered) is None:
                raise domain.agents.offer_not_found(request.conversation_id)
            declined[:] = [True]
            return agents_pb.DeclineOfferResponse()

        response = await self.tools.once(f"{AGENTS}/DeclineOffer", request, work)
        if declined:
            self.router.decline_offer(*offered)
        return response
