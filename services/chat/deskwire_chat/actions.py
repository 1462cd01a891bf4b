"""Use cases of chat: one transaction each, idempotent by request_id, the event in the same transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from google.protobuf.message import Message as ProtoMessage
from sqlalchemy.exc import IntegrityError

from deskwire.chat.v1 import agent_service_pb2 as agents_pb
from deskwire.chat.v1 import conversation_service_pb2 as conversations_pb
from deskwire.chat.v1 import customer_pb2
from deskwire.chat.v1 import customer_service_pb2 as customers_pb
from deskwire_chat import domain, events, views
from deskwire_chat.domain import (
    ActorRole,
    Agent,
    Change,
    Conversation,
    Customer,
    Identity,
    State,
    Status,
    Writer,
)
from deskwire_chat.routing import Router
from deskwire_chat.shard.commands import Store, Stored
from deskwire_chat.shard.connections import Connections
from deskwire_chat.shard.links import check_client_msg_id
from deskwire_chat.shard.writer import ShardWriter
from deskwire_chat.store import agents, conversations, customers, messages, receipts
from deskwire_common import telemetry
from deskwire_common.auth import Principal, Role, acting_as, current_principal
from deskwire_common.clock import Clock, to_micros
from deskwire_common.db import Database, UnitOfWork, WriteConflict, is_unique_violation
from deskwire_common.errors import (
    AlreadyExists,
    DeskwireError,
    InvalidArgument,
    PermissionDenied,
)
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.ids import Ids
from deskwire_common.outbox import Outbox
from deskwire_common.pagination import decode_page, encode_page

CONVERSATIONS: Final = "deskwire.chat.v1.ConversationService"
CUSTOMERS: Final = "deskwire.chat.v1.CustomerService"
AGENTS: Final = "deskwire.chat.v1.AgentService"

ResponseT = TypeVar("ResponseT", bound=ProtoMessage)

Look = Callable[[], Awaitable[None]]
"""Has the gate see at once what a transaction has changed (worker.GateKeeper.look)."""

_PAGE: Final = 50
_HISTORY: Final = 200


@dataclass(frozen=True, slots=True)
class Tools:
    """What every use case is given."""

    db: Database
    outbox: Outbox
    idempotency: IdempotencyStore
    clock: Clock
    ids: Ids

    def now(self) -> int:
        """Microseconds since 1970 UTC."""
        return to_micros(self.clock.now())

    async def once(
        self,
        method: str,
        request: Any,
        work: Callable[[UnitOfWork], Awaitable[ResponseT]],
    ) -> ResponseT:
        """Do `work` in a transaction of its own, once per request_id. Raises RequestIdReused, Unavailable.

        A row that another caller inserted meanwhile is for the next attempt to see.
        """

        async def attempt(uow: UnitOfWork) -> ResponseT:
            try:
                return await self.idempotency.execute(
                    uow, method=method, request=request, work=lambda: work(uow)
                )
            except IntegrityError as error:
                if is_unique_violation(error):
                    raise WriteConflict("two calls made the same thing; try again") from error
                raise

        return await self.db.run(attempt)


@dataclass(frozen=True, slots=True)
class ConversationActions:
    """What can be done with conversations, for the current principal and in its tenant."""

    tools: Tools
    writer: ShardWriter

    async def get(
        self, request: conversations_pb.GetConversationRequest
    ) -> conversations_pb.GetConversationResponse:
        """Raises NotFound (CONVERSATION_NOT_FOUND)."""
        found = await self._visible(request.conversation_id)
        return conversations_pb.GetConversationResponse(conversation=views.conversation(found))

    async def list(
        self, request: conversations_pb.ListConversationsRequest
    ) -> conversations_pb.ListConversationsResponse:
        """Raises InvalidArgument (INVALID_PAGE_TOKEN)."""
        principal = current_principal()
        visitor = principal.subject if principal.role is Role.VISITOR else ""
        filters = {
            "states": sorted(request.states),
            "agent_id": request.agent_id,
            "customer_id": request.customer_id,
            "visitor": visitor,
            "tenant": principal.tenant,
        }
        key = decode_page(request.page_token, "ListConversations", filters, length=2)
        size = request.page_size or _PAGE
        async with self.tools.db.read() as c:
            found = await conversations.page(
                c,
                principal.tenant,
                states=[State(each) for each in request.states],
                agent_id=request.agent_id,
                customer_id=request.customer_id,
                visitor_id=visitor,
                before=(int(key[0]), str(key[1])) if key else None,
                limit=size + 1,
            )
        token = ""
        if len(found) > size:
            last = found[size - 1]
            token = encode_page(
                "ListConversations", filters, (last.created_at, last.conversation_id)
            )
        return conversations_pb.ListConversationsResponse(
            conversations=[views.conversation(each) for each in found[:size]], next_page_token=token
        )

    async def list_messages(
        self, request: conversations_pb.ListMessagesRequest
    ) -> conversations_pb.ListMessagesResponse:
        """Raises NotFound (CONVERSATION_NOT_FOUND)."""
        conversation = await self._visible(request.conversation_id)
        async with self.tools.db.read() as c:
            run = await messages.after_seq(
                c,
                request.conversation_id,
                seq=request.after_seq,
                limit=request.page_size or _HISTORY,
            )
            got = await receipts.of_conversation(c, request.conversation_id)
        return conversations_pb.ListMessagesResponse(
            messages=[views.message(each) for each in run],
            receipts=[views.receipt(each) for each in got],
            epoch=conversation.epoch,
            # Messages may have come between the two reads.
            head_seq=max(conversation.head_seq, run[-1].seq if run else 0),
        )

    async def send(
        self, request: conversations_pb.SendMessageRequest
    ) -> conversations_pb.SendMessageResponse:
        """Store a message as the Send frame does, in the conversation's turn; returns when it is committed."""
        check_client_msg_id(request.client_msg_id)
        future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()

        def reply(result: Stored | DeskwireError) -> None:
            if future.done():
                return
            if isinstance(result, Stored):
                future.set_result(result)
            else:
                future.set_exception(result)

        traceparent = telemetry.current_traceparent()
        self.writer.submit(
            Store(
                who=Writer.of(current_principal()),
                conversation_id=request.conversation_id.lower(),
                client_msg_id=request.client_msg_id,
                body=request.content.SerializeToString(),
                reply=reply,
                traceparent=traceparent if telemetry.sampled(traceparent) else "",
            )
        )
        stored = await future
        return conversations_pb.SendMessageResponse(
            message=views.message(stored.message), epoch=stored.epoch
        )

    async def close(
        self, request: conversations_pb.CloseConversationRequest
    ) -> conversations_pb.CloseConversationResponse:
        """End a conversation and free its agent.

        Raises NotFound, FailedPrecondition (INVALID_STATE), VersionMismatch, RequestIdReused.
        """

        async def end(uow: UnitOfWork, item: Conversation) -> dict[str, Change]:
            changes = domain.close(
                item, expected_version=request.expected_version, now=self.tools.now()
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
        """Give a conversation to another agent, or back to the queue.

        Raises NotFound (CONVERSATION_NOT_FOUND, AGENT_NOT_FOUND), FailedPrecondition, VersionMismatch,
        RequestIdReused.
        """

        async def hand_over(uow: UnitOfWork, item: Conversation) -> dict[str, Change]:
            before = item.agent_id
            changes = domain.transfer(
                item,
                agent_id=request.agent_id,
                expected_version=request.expected_version,
                now=self.tools.now(),
            )
            if request.agent_id:
                agent = await agents.get(uow.connection, item.tenant, request.agent_id, lock=True)
                if agent is None:
                    raise domain.agent_not_found(request.agent_id)
                if not await agents.take(
                    uow.connection, item.tenant, request.agent_id, now=self.tools.now()
                ):
                    raise domain.agent_has_no_room(request.agent_id)
            if before:
                await agents.free(uow.connection, item.tenant, before)
            return changes

        return await self._alter(
            request,
            "TransferConversation",
            conversations_pb.TransferConversationResponse,
            hand_over,
            events.conversation_transferred,
        )

    async def put_back(self, conversation_id: str, agent_id: str) -> None:
        """Put a conversation of an agent who is shut out back into the queue, unless it has left them meanwhile."""

        async def work(uow: UnitOfWork, item: Conversation | None) -> None:
            if item is None or item.state != State.ACTIVE or item.agent_id != agent_id:
                return
            changes = domain.transfer(item, agent_id="", expected_version=0, now=self.tools.now())
            await agents.free(uow.connection, item.tenant, agent_id)
            event = events.conversation_transferred(
                item,
                changes,
                event_id=self.tools.ids.uuid7(),
                now=self.tools.now(),
                by=Writer.system(item.tenant),
                traceparent=item.traceparent,
            )
            await self.tools.outbox.add(uow, [event])

        await self.writer.alter(conversation_id, work)

    async def _alter(
        self,
        request: Any,
        method: str,
        response: type[ResponseT],
        change: Callable[[UnitOfWork, Conversation], Awaitable[dict[str, Change]]],
        event: Callable[..., Any],
    ) -> ResponseT:
        principal = current_principal()
        who = Writer.of(principal)
        traceparent = telemetry.current_traceparent()

        async def work(uow: UnitOfWork, item: Conversation | None) -> ResponseT:
            async def once() -> ResponseT:
                if item is None or not domain.may_see(item, who):
                    raise domain.conversation_not_found(request.conversation_id)
                changes = await change(uow, item)
                await self.tools.outbox.add(
                    uow,
                    [
                        event(
                            item,
                            changes,
                            event_id=self.tools.ids.uuid7(),
                            now=self.tools.now(),
                            by=who,
                            traceparent=traceparent,
                        )
                    ],
                )
                return response(conversation=views.conversation(item))

            with acting_as(principal):
                return await self.tools.idempotency.execute(
                    uow, method=f"{CONVERSATIONS}/{method}", request=request, work=once
                )

        result: ResponseT = await self.writer.alter(request.conversation_id, work)
        return result

    async def _visible(self, conversation_id: str) -> Conversation:
        who = Writer.of(current_principal())
        async with self.tools.db.read() as c:
            found = await conversations.get(c, who.tenant, conversation_id)
        if found is None or not domain.may_see(found, who):
            raise domain.conversation_not_found(conversation_id)
        return found


@dataclass(frozen=True, slots=True)
class CustomerActions:
    """What can be done with customers, for the current principal and in its tenant."""

    tools: Tools
    connections: Connections
    default_region: str = ""

    async def get(
        self, request: customers_pb.GetCustomerRequest
    ) -> customers_pb.GetCustomerResponse:
        """Raises NotFound (CUSTOMER_NOT_FOUND)."""
        async with self.tools.db.read() as c:
            found = await customers.get(c, current_principal().tenant, request.customer_id)
        if found is None:
            raise domain.customer_not_found(request.customer_id)
        return customers_pb.GetCustomerResponse(customer=views.customer(found))

    async def lookup(
        self, request: customers_pb.LookupCustomerRequest
    ) -> customers_pb.LookupCustomerResponse:
        """Raises NotFound (CUSTOMER_NOT_FOUND)."""
        tenant = current_principal().tenant
        identity = Identity(request.identity.namespace, request.identity.value)
        async with self.tools.db.read() as c:
            owner = (await customers.owners(c, tenant, [identity])).get(identity)
            found = await customers.get(c, tenant, owner) if owner else None
        if found is None:
            raise domain.customer_not_found(f"{identity.namespace}/{identity.value}")
        return customers_pb.LookupCustomerResponse(customer=views.customer(found))

    async def list(
        self, request: customers_pb.ListCustomersRequest
    ) -> customers_pb.ListCustomersResponse:
        """Raises InvalidArgument (INVALID_PAGE_TOKEN)."""
        tenant = current_principal().tenant
        key = decode_page(request.page_token, "ListCustomers", {"tenant": tenant}, length=1)
        size = request.page_size or _PAGE
        async with self.tools.db.read() as c:
            found = await customers.page(
                c, tenant, after=str(key[0]) if key else None, limit=size + 1
            )
        token = ""
        if len(found) > size:
            token = encode_page("ListCustomers", {"tenant": tenant}, (found[size - 1].customer_id,))
        return customers_pb.ListCustomersResponse(
            customers=[views.customer(each) for each in found[:size]], next_page_token=token
        )

    async def update(
        self, request: customers_pb.UpdateCustomerRequest
    ) -> customers_pb.UpdateCustomerResponse:
        """Change some fields; tells the agents who have a conversation of theirs open.

        Raises NotFound, VersionMismatch, InvalidArgument (INVALID_UPDATE_MASK), RequestIdReused.
        """
        who = Writer.of(current_principal())
        values = self._values(request.customer, domain.check_mask(request.update_mask.paths))
        changed: list[Customer] = []

        async def work(uow: UnitOfWork) -> customers_pb.UpdateCustomerResponse:
            async def once() -> customers_pb.UpdateCustomerResponse:
                before = await customers.get(
                    uow.connection, who.tenant, request.customer.customer_id, lock=True
                )
                if before is None:
                    raise domain.customer_not_found(request.customer.customer_id)
                domain.check_version(before.version, request.expected_version)
                after = await self._save(uow, before, values, (), who)
                changed[:] = [after] if after is not before else []
                return customers_pb.UpdateCustomerResponse(customer=views.customer(after))

            return await self.tools.idempotency.execute(
                uow, method=f"{CUSTOMERS}/UpdateCustomer", request=request, work=once
            )

        response = await self.tools.db.run(work)
        await self._tell(changed)
        return response

    async def upsert(
        self, request: customers_pb.UpsertCustomerRequest
    ) -> customers_pb.UpsertCustomerResponse:
        """Create or update the customer that has one of the identities.

        Raises FailedPrecondition (IDENTITY_CONFLICT), InvalidArgument (INVALID_UPDATE_MASK), RequestIdReused.
        """
        who = Writer.of(current_principal())
        values = self._values(request.customer, domain.check_mask(request.update_mask.paths))
        identities = tuple(
            sorted({Identity(each.namespace, each.value) for each in request.customer.identities})
        )
        if not identities:
            raise InvalidArgument("name at least one identity", field="customer.identities")
        changed: list[Customer] = []

        async def work(uow: UnitOfWork) -> customers_pb.UpsertCustomerResponse:
            async def once() -> customers_pb.UpsertCustomerResponse:
                changed.clear()
                owners = await customers.owners(uow.connection, who.tenant, identities)
                found = sorted(set(owners.values()))
                if len(found) > 1:
                    raise domain.identity_conflict(found[0], found[1])
                if not found:
                    return await self._create(uow, values, identities, who, request.source_version)
                before = await customers.get(uow.connection, who.tenant, found[0], lock=True)
                if before is None:
                    raise WriteConflict("a customer disappeared; try again")
                if not await self._newer(
                    uow, before.customer_id, who.origin, request.source_version
                ):
                    return customers_pb.UpsertCustomerResponse(customer=views.customer(before))
                after = await self._save(uow, before, values, identities, who)
                changed[:] = [after] if after is not before else []
                return customers_pb.UpsertCustomerResponse(customer=views.customer(after))

            try:
                return await self.tools.idempotency.execute(
                    uow, method=f"{CUSTOMERS}/UpsertCustomer", request=request, work=once
                )
            except IntegrityError as error:
                if is_unique_violation(error):
                    # Somebody else gave a customer this identity meanwhile: the next attempt sees it.
                    raise WriteConflict("two callers named the same customer; try again") from error
                raise

        response = await self.tools.db.run(work)
        await self._tell(changed)
        return response

    async def _create(
        self,
        uow: UnitOfWork,
        values: dict[str, str],
        identities: tuple[Identity, ...],
        who: Writer,
        source_version: int,
    ) -> customers_pb.UpsertCustomerResponse:
        now = self.tools.now()
        customer = replace(
            Customer(
                customer_id=self.tools.ids.uuid7(),
                tenant=who.tenant,
                identities=identities,
                created_at=now,
                updated_at=now,
            ),
            display_name=values.get("display_name", ""),
            email=values.get("email", ""),
            mobile=values.get("mobile", ""),
        )
        await customers.add(uow.connection, [customer])
        if source_version:
            await customers.save_source_version(
                uow.connection, customer.customer_id, who.origin, source_version, known=False
            )
        event = events.customer_created(
            customer,
            event_id=self.tools.ids.uuid7(),
            by=who,
            traceparent=telemetry.current_traceparent(),
        )
        await self.tools.outbox.add(uow, [event])
        return customers_pb.UpsertCustomerResponse(customer=views.customer(customer), created=True)

    async def _newer(self, uow: UnitOfWork, customer_id: str, system: str, version: int) -> bool:
        """Whether a system's version is not older than the last one; notes it."""
        if not version:
            return True
        known = await customers.source_version(uow.connection, customer_id, system)
        if known is not None and version < known:
            return False
        if known != version:
            await customers.save_source_version(
                uow.connection, customer_id, system, version, known=known is not None
            )
        return True

    async def _save(
        self,
        uow: UnitOfWork,
        before: Customer,
        values: dict[str, str],
        identities: Sequence[Identity],
        who: Writer,
    ) -> Customer:
        after, changes = domain.changed_customer(
            before, values, add_identities=identities, now=self.tools.now()
        )
        if not changes:
            return before
        await customers.save(uow.connection, before, after)
        event = events.customer_updated(
            after,
            changes,
            event_id=self.tools.ids.uuid7(),
            by=who,
            traceparent=telemetry.current_traceparent(),
        )
        await self.tools.outbox.add(uow, [event])
        return after

    async def _tell(self, changed: Sequence[Customer]) -> None:
        for customer in changed:
            async with self.tools.db.read() as c:
                told = await conversations.agents_of_customer(
                    c, customer.tenant, customer.customer_id
                )
            self.connections.deliver(
                [(customer.tenant, int(ActorRole.AGENT), each) for each in told],
                views.customer_push(customer),
            )

    def _values(self, customer: customer_pb2.Customer, fields: Sequence[str]) -> dict[str, str]:
        values = {name: str(getattr(customer, name)) for name in fields}
        for name, value in values.items():
            if not value.isprintable():
                raise InvalidArgument(
                    "may hold printable characters only", field=f"customer.{name}"
                )
        if "mobile" in values:
            values["mobile"] = domain.normalise_mobile(
                values["mobile"], default_region=self.default_region
            )
        return values


@dataclass(frozen=True, slots=True)
class AgentActions:
    """What can be done with agents, for the current principal and in its tenant."""

    tools: Tools
    router: Router
    look: Look

    async def create(self, request: agents_pb.CreateAgentRequest) -> agents_pb.CreateAgentResponse:
        """Make an agent known, as AWAY. Raises AlreadyExists, InvalidArgument, RequestIdReused."""
        who = Writer.of(current_principal())
        check_printable(request.display_name, "display_name")
        agent = Agent(
            tenant=who.tenant,
            agent_id=request.agent_id,
            display_name=request.display_name,
            status=Status.AWAY,
            capacity=request.capacity or domain.DEFAULT_CAPACITY,
            active=0,
            idle_since=self.tools.now(),
            version=1,
        )

        async def work(uow: UnitOfWork) -> agents_pb.CreateAgentResponse:
            if await agents.get(uow.connection, who.tenant, request.agent_id) is not None:
                raise AlreadyExists(f"agent {request.agent_id} is known already")
            await agents.add(uow.connection, agent)
            connected = self.router.is_connected(who.tenant, request.agent_id)
            event = events.agent_created(
                agent,
                event_id=self.tools.ids.uuid7(),
                now=agent.idle_since,
                by=who,
                traceparent=telemetry.current_traceparent(),
                connected=connected,
            )
            await self.tools.outbox.add(uow, [event])
            return agents_pb.CreateAgentResponse(agent=views.agent(agent, connected=connected))

        response = await self.tools.once(f"{AGENTS}/CreateAgent", request, work)
        self.router.said(agent)
        return response

    async def disable(
        self, request: agents_pb.DisableAgentRequest
    ) -> agents_pb.DisableAgentResponse:
        """Shut an agent out. Raises NotFound, FailedPrecondition, VersionMismatch, RequestIdReused."""
        return await self._switch(
            request, "DisableAgent", agents_pb.DisableAgentResponse, disabled=True
        )

    async def enable(self, request: agents_pb.EnableAgentRequest) -> agents_pb.EnableAgentResponse:
        """Let an agent in again. Raises NotFound, FailedPrecondition, VersionMismatch, RequestIdReused."""
        return await self._switch(
            request, "EnableAgent", agents_pb.EnableAgentResponse, disabled=False
        )

    async def _switch(
        self, request: Any, method: str, response: Callable[..., ResponseT], *, disabled: bool
    ) -> ResponseT:
        who = Writer.of(current_principal())
        changed: list[Agent] = []

        async def work(uow: UnitOfWork) -> ResponseT:
            before = await agents.get(uow.connection, who.tenant, request.agent_id, lock=True)
            if before is None:
                raise domain.agent_not_found(request.agent_id)
            after, changes = domain.switched(
                before, disabled=disabled, expected_version=request.expected_version
            )
            await agents.save(uow.connection, after)
            # Who is shut out is disconnected when this is read.
            connected = not disabled and self.router.is_connected(who.tenant, request.agent_id)
            event = events.agent_switched(
                after,
                changes,
                event_id=self.tools.ids.uuid7(),
                now=self.tools.now(),
                by=who,
                traceparent=telemetry.current_traceparent(),
                connected=connected,
            )
            await self.tools.outbox.add(uow, [event])
            changed[:] = [after]
            return response(agent=views.agent(after, connected=connected))

        result = await self.tools.once(f"{AGENTS}/{method}", request, work)
        for agent in changed:
            self.router.said(agent)
        await self.look()
        return result

    async def set_status(
        self, request: agents_pb.SetAgentStatusRequest
    ) -> agents_pb.SetAgentStatusResponse:
        """Make an agent available or away.

        Raises PermissionDenied for another agent's id, InvalidArgument, RequestIdReused.
        """
        principal = current_principal()
        who = Writer.of(principal)
        agent_id = _agent_meant(principal, request)
        changed: list[Agent] = []

        async def work(uow: UnitOfWork) -> agents_pb.SetAgentStatusResponse:
            async def once() -> agents_pb.SetAgentStatusResponse:
                before = await agents.get(uow.connection, who.tenant, agent_id, lock=True)
                if before is None:
                    name = request.display_name or (
                        principal.name if agent_id == principal.subject else ""
                    )
                    after = Agent(
                        tenant=who.tenant,
                        agent_id=agent_id,
                        display_name=name,
                        status=Status(request.status),
                        capacity=request.capacity or domain.DEFAULT_CAPACITY,
                        active=0,
                        idle_since=self.tools.now(),
                        version=1,
                    )
                    changes = {"status": Change(None, domain.status_name(after.status))}
                    await agents.add(uow.connection, after)
                else:
                    after, changes = domain.changed_agent(
                        before,
                        status=Status(request.status),
                        capacity=request.capacity,
                        display_name=request.display_name,
                    )
                    if changes:
                        await agents.save(uow.connection, after)
                changed[:] = [after] if changes else []
                connected = self.router.is_connected(who.tenant, agent_id)
                if changes:
                    event = events.agent_status_changed(
                        after,
                        changes,
                        event_id=self.tools.ids.uuid7(),
                        now=self.tools.now(),
                        by=who,
                        traceparent=telemetry.current_traceparent(),
                        connected=connected,
                    )
                    await self.tools.outbox.add(uow, [event])
                return agents_pb.SetAgentStatusResponse(
                    agent=views.agent(after, connected=connected)
                )

            try:
                return await self.tools.idempotency.execute(
                    uow, method=f"{AGENTS}/SetAgentStatus", request=request, work=once
                )
            except IntegrityError as error:
                if is_unique_violation(error):
                    raise WriteConflict("two calls made the same agent known; try again") from error
                raise

        response = await self.tools.db.run(work)
        for agent in changed:
            self.router.said(agent)
        return response

    async def get(self, request: agents_pb.GetAgentRequest) -> agents_pb.GetAgentResponse:
        """Raises NotFound (AGENT_NOT_FOUND)."""
        tenant = current_principal().tenant
        async with self.tools.db.read() as c:
            found = await agents.get(c, tenant, request.agent_id)
        if found is None:
            raise domain.agent_not_found(request.agent_id)
        return agents_pb.GetAgentResponse(agent=self._view(found))

    async def list(self, request: agents_pb.ListAgentsRequest) -> agents_pb.ListAgentsResponse:
        """Raises InvalidArgument (INVALID_PAGE_TOKEN)."""
        tenant = current_principal().tenant
        key = decode_page(request.page_token, "ListAgents", {"tenant": tenant}, length=1)
        size = request.page_size or _PAGE
        async with self.tools.db.read() as c:
            found = await agents.page(c, tenant, after=str(key[0]) if key else None, limit=size + 1)
        token = ""
        if len(found) > size:
            token = encode_page("ListAgents", {"tenant": tenant}, (found[size - 1].agent_id,))
        return agents_pb.ListAgentsResponse(
            agents=[self._view(each) for each in found[:size]], next_page_token=token
        )

    def _view(self, agent: Agent) -> Any:
        return views.agent(agent, connected=self.router.is_connected(agent.tenant, agent.agent_id))


def _agent_meant(principal: Principal, request: agents_pb.SetAgentStatusRequest) -> str:
    """Whose status is to be set: an agent's own, or the one that an operator names."""
    check_printable(request.display_name, "display_name")
    if principal.role is Role.OPERATOR and not request.agent_id:
        raise InvalidArgument("name the agent", field="agent_id")
    if principal.role is Role.AGENT and request.agent_id not in {"", principal.subject}:
        raise PermissionDenied("an agent speaks for themselves only")
    return request.agent_id or principal.subject


def check_printable(text: str, field: str) -> None:
    """Raise InvalidArgument for characters that a name can't have."""
    if not text.isprintable():
        raise InvalidArgument("may hold printable characters only", field=field)
