"""The use cases of conversations."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from deskwire.chat.v1 import conversation_service_pb2 as conversations_pb
from deskwire_chat import domain, events, views
from deskwire_chat.actions.tools import ResponseT, Tools
from deskwire_chat.domain import words
from deskwire_chat.domain.actors import Actor, ActorRole
from deskwire_chat.domain.changes import Change
from deskwire_chat.domain.conversations import Conversation, State, TransferCause
from deskwire_chat.domain.messages import Message, check_client_msg_id
from deskwire_chat.events import Occasion
from deskwire_chat.log.commands import Put, Stored, reply_to
from deskwire_chat.log.writer import LogWriter
from deskwire_chat.routing.router import Router
from deskwire_chat.store import agents, conversations, messages, receipts, search
from deskwire_chat.store.search import Hit
from deskwire_chat.store.unread import unread_by
from deskwire_common import telemetry
from deskwire_common.auth import Role, acting_as, current_principal
from deskwire_common.db import UnitOfWork
from deskwire_common.events import DomainEvent
from deskwire_common.metrics import METRICS
from deskwire_common.pagination import ANSWER_BYTES, PageKey, fit, page

CONVERSATIONS: Final = "deskwire.chat.v1.ConversationService"

_HISTORY: Final = 200
_HITS: Final = 20


@dataclass(frozen=True, slots=True)
class ConversationActions:
    """The use cases of conversations, for the current principal and in its tenant."""

    tools: Tools
    writer: LogWriter
    router: Router

    async def get(
        self, request: conversations_pb.GetConversationRequest
    ) -> conversations_pb.GetConversationResponse:
        """Return a conversation that the caller may see. Raises NotFound (CONVERSATION_NOT_FOUND)."""
        found = await self._visible(request.conversation_id)
        return conversations_pb.GetConversationResponse(
            conversation=views.messages.conversation(found)
        )

    async def list(
        self, request: conversations_pb.ListConversationsRequest
    ) -> conversations_pb.ListConversationsResponse:
        """Return a page of conversations, newest first: a visitor's own, or the tenant's. Raises InvalidArgument."""
        principal = current_principal()
        visitor = principal.subject if principal.role is Role.VISITOR else ""
        filters = {
            "states": sorted(request.states),
            "agent_id": request.agent_id,
            "customer_id": request.customer_id,
            "visitor": visitor,
            "tenant": principal.tenant,
        }
        async with self.tools.db.read() as c:
            found, token = await page(
                request,
                "ListConversations",
                filters,
                shape=(int, str),
                read=lambda key, limit: conversations.page(
                    c,
                    principal.tenant,
                    states=[State(each) for each in request.states],
                    agent_id=request.agent_id,
                    customer_id=request.customer_id,
                    visitor_id=visitor,
                    before=(int(key[0]), str(key[1])) if key else None,
                    limit=limit,
                ),
                key=lambda item: (item.created_at, item.conversation_id),
                view=views.messages.conversation,
            )
        return conversations_pb.ListConversationsResponse(
            conversations=found, next_page_token=token
        )

    async def list_messages(
        self, request: conversations_pb.ListMessagesRequest
    ) -> conversations_pb.ListMessagesResponse:
        """Return a run of messages after a seq, as the caller sees them. Raises NotFound (CONVERSATION_NOT_FOUND)."""
        who = Actor.of(current_principal())
        conversation = await self._visible(request.conversation_id)
        async with self.tools.db.read() as c:
            run = await messages.after_seq(
                c,
                request.conversation_id,
                seq=request.after_seq,
                limit=request.page_size or _HISTORY,
                max_bytes=ANSWER_BYTES,
            )
            got = await receipts.of_conversation(c, request.conversation_id)
            # Messages may have been stored between the two reads.
            conversation.head_seq = max(conversation.head_seq, run[-1].seq if run else 0)
            count = await unread_by(c, conversation, who)
        return conversations_pb.ListMessagesResponse(
            messages=fit(views.messages.message(each, who) for each in run),
            receipts=[views.messages.receipt(each) for each in got],
            epoch=conversation.epoch,
            head_seq=conversation.head_seq,
            unread=count,
        )

    async def search(
        self, request: conversations_pb.SearchMessagesRequest
    ) -> conversations_pb.SearchMessagesResponse:
        """Return a page of messages that have all words of a query, newest first.

        Raises InvalidArgument (INVALID_FIELD, INVALID_PAGE_TOKEN), NotFound (CONVERSATION_NOT_FOUND).
        """
        principal = current_principal()
        visitor = principal.subject if principal.role is Role.VISITOR else ""
        conversation_id = request.conversation_id.lower()
        filters = {
            "query": request.query,
            "conversation_id": conversation_id,
            "customer_id": request.customer_id,
            "visitor": visitor,
            "tenant": principal.tenant,
        }
        terms = words.of_query(request.query)
        if conversation_id:
            await self._visible(conversation_id)
        if not terms:
            return conversations_pb.SearchMessagesResponse()
        who = Actor.of(principal)
        async with self.tools.db.read() as c:

            async def read(key: PageKey | None, limit: int) -> list[tuple[Hit, Message | None]]:
                hits = await search.find(
                    c,
                    principal.tenant,
                    terms,
                    conversation_id=conversation_id,
                    customer_id=request.customer_id,
                    visitor_id=visitor,
                    notes=not visitor,
                    before=(int(key[0]), str(key[1])) if key else None,
                    limit=limit,
                )
                found = await messages.at(c, [(each.conversation_id, each.seq) for each in hits])
                return [(each, found.get((each.conversation_id, each.seq))) for each in hits]

            def view(row: tuple[Hit, Message | None]) -> conversations_pb.SearchHit | None:
                _, found = row
                # The index may name messages that a restored database doesn't have.
                if found is None:
                    return None
                return conversations_pb.SearchHit(message=views.messages.message(found, who))

            shown, token = await page(
                request,
                "SearchMessages",
                filters,
                shape=(int, str),
                read=read,
                key=lambda row: (row[0].created_at, row[0].message_id),
                view=view,
                default_size=_HITS,
            )
        return conversations_pb.SearchMessagesResponse(hits=shown, next_page_token=token)

    async def send(
        self, request: conversations_pb.SendMessageRequest
    ) -> conversations_pb.SendMessageResponse:
        """Store a message as the Send frame does, in the conversation's order; returns when it is committed."""
        check_client_msg_id(request.client_msg_id)
        kind, target_seq = views.content.kind_of(request.content)
        who = Actor.of(current_principal())
        future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        traceparent = telemetry.current_traceparent()
        self.writer.submit(
            Put(
                who=who,
                conversation_id=request.conversation_id.lower(),
                client_msg_id=request.client_msg_id,
                body=request.content.SerializeToString(),
                reply=reply_to(future),
                kind=kind,
                target_seq=target_seq,
                traceparent=traceparent if telemetry.sampled(traceparent) else "",
            )
        )
        stored = await future
        if who.role == ActorRole.AGENT:
            self.router.agent_active(who.tenant, who.subject)
        return conversations_pb.SendMessageResponse(
            message=views.messages.message(stored.message, who),
            epoch=stored.epoch,
            duplicate=stored.duplicate,
        )

    async def close(
        self, request: conversations_pb.CloseConversationRequest
    ) -> conversations_pb.CloseConversationResponse:
        """End a conversation and free its agent.

        Raises NotFound, PermissionDenied (NOT_A_PARTICIPANT) for a bot that doesn't have it, FailedPrecondition
        (INVALID_STATE), VersionMismatch, RequestIdReused.
        """

        async def end(uow: UnitOfWork, item: Conversation, now: int) -> dict[str, Change]:
            changes = domain.conversations.close(
                item, expected_version=request.expected_version, now=now
            )
            if item.agent_id:
                await agents.free(uow.connection, item.tenant, item.agent_id)
            return changes

        return await self._alter(
            request,
            "CloseConversation",
            conversations_pb.CloseConversationResponse,
            end,
            events.conversation_closed,
        )

    async def transfer(
        self, request: conversations_pb.TransferConversationRequest
    ) -> conversations_pb.TransferConversationResponse:
        """Give a conversation to another agent or a bot, or to the queue, where it waits for a person.

        Raises PermissionDenied (NOT_A_PARTICIPANT) for a bot that doesn't have it, NotFound (CONVERSATION_NOT_FOUND,
        AGENT_NOT_FOUND), FailedPrecondition, VersionMismatch, RequestIdReused.
        """

        async def hand_over(uow: UnitOfWork, item: Conversation, now: int) -> dict[str, Change]:
            before, agent = item.agent_id, None
            if request.agent_id:
                agent = await agents.lock(uow.connection, item.tenant, request.agent_id)
            changes = domain.conversations.transfer(
                item,
                agent_id=request.agent_id,
                bot=agent is not None and agent.bot,
                expected_version=request.expected_version,
                now=now,
            )
            if request.agent_id:
                if agent is None:
                    raise domain.agents.agent_not_found(request.agent_id)
                if not await agents.take(uow.connection, item.tenant, request.agent_id, now=now):
                    raise domain.agents.agent_has_no_room(request.agent_id)
            if before:
                await agents.free(uow.connection, item.tenant, before)
            return changes

        return await self._alter(
            request,
            "TransferConversation",
            conversations_pb.TransferConversationResponse,
            hand_over,
            partial(events.conversation_transferred, cause=TransferCause.ASKED),
        )

    async def put_back(
        self,
        conversation_id: str,
        agent_id: str,
        cause: TransferCause,
        *,
        unless: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Put a conversation of a disabled agent, or of one that is gone, back into the queue; return whether it was.

        It stays where it is if it has left them meanwhile, or `unless` something is so when its turn has come.
        """

        async def work(uow: UnitOfWork, item: Conversation | None) -> bool:
            if item is None or item.state != State.ACTIVE or item.agent_id != agent_id or unless():
                return False
            on = self.tools.occasion(Actor.system(item.tenant), traceparent=item.traceparent)
            changes = domain.conversations.transfer(
                item, agent_id="", expected_version=0, now=on.now
            )
            await agents.free(uow.connection, item.tenant, agent_id)
            event = events.conversation_transferred(on, item, changes, cause=cause)
            await self.tools.outbox.add(uow, [event])
            return True

        was: bool = await self.writer.alter(conversation_id, work)
        if was:
            METRICS.conversations_put_back.labels(cause.name.lower()).inc()
        return was

    async def _alter(
        self,
        request: Any,
        method: str,
        response: type[ResponseT],
        change: Callable[[UnitOfWork, Conversation, int], Awaitable[dict[str, Change]]],
        event: Callable[[Occasion, Conversation, dict[str, Change]], DomainEvent],
    ) -> ResponseT:
        principal = current_principal()
        who = Actor.of(principal)
        traceparent = telemetry.current_traceparent()

        async def work(uow: UnitOfWork, item: Conversation | None) -> ResponseT:
            async def once() -> ResponseT:
                if item is None:
                    raise domain.conversations.conversation_not_found(request.conversation_id)
                domain.conversations.check_may_alter(item, who)
                on = self.tools.occasion(who, traceparent=traceparent)
                changes = await change(uow, item, on.now)
                await self.tools.outbox.add(uow, [event(on, item, changes)])
                return response(conversation=views.messages.conversation(item))

            with acting_as(principal):
                return await self.tools.idempotency.execute(
                    uow, method=f"{CONVERSATIONS}/{method}", request=request, work=once
                )

        result: ResponseT = await self.writer.alter(request.conversation_id, work)
        return result

    async def _visible(self, conversation_id: str) -> Conversation:
        who = Actor.of(current_principal())
        async with self.tools.db.read() as c:
            found = await conversations.get(c, who.tenant, conversation_id)
        if found is None or not domain.conversations.may_see(found, who):
            raise domain.conversations.conversation_not_found(conversation_id)
        return found
