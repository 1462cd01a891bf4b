"""The use case of history: a closed conversation of another system, with the times that it had there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from weakref import WeakValueDictionary

from deskwire.chat.v1 import history_service_pb2 as history_pb
from deskwire_chat import domain, events, views
from deskwire_chat.actions.customers import CustomerActions
from deskwire_chat.actions.tools import Tools
from deskwire_chat.domain.actors import Actor, ActorRole
from deskwire_chat.domain.conversations import Conversation
from deskwire_chat.domain.customers import CUSTOMER_FIELDS, MAX_IDENTITIES, Customer
from deskwire_chat.domain.history import PastMessage, Provenance
from deskwire_chat.domain.messages import Kind, Message, check_client_msg_id
from deskwire_chat.events import Occasion
from deskwire_chat.log.commands import Imported
from deskwire_chat.log.group import CustomerKey
from deskwire_chat.log.writer import LogWriter
from deskwire_chat.store import conversations, customers, history, messages
from deskwire_common import texts
from deskwire_common.auth import current_principal
from deskwire_common.db import UnitOfWork, WriteConflict
from deskwire_common.errors import InvalidArgument
from deskwire_common.events import DomainEvent
from deskwire_common.quota import Quota

HISTORY: Final = "deskwire.chat.v1.HistoryService"

MAX_BYTES: Final = 1024 * 1024
"""The most bytes of a request."""
_WAITING: Final = 16
"""How many imports a tenant may have under way; each holds its request in memory."""
_AT_ONCE: Final = 8
"""How many of a tenant's wait in the log's lanes: they are written together, so more would not be faster."""
_AT_ONCE_OF_ALL: Final = 16
"""How many of all tenants' wait there, in front of messages."""
_ATTEMPTS: Final = 4


def provenance_of(request: history_pb.ImportConversationRequest) -> Provenance:
    """Return where a request's conversation comes from."""
    return Provenance(request.source, request.external_id)


def conversation_of(request: history_pb.ImportConversationRequest) -> str:
    """Return the id that a request's conversation has, in the caller's tenant."""
    return domain.history.conversation_id_of(current_principal().tenant, provenance_of(request))


@dataclass(frozen=True, slots=True)
class HistoryActions:
    """The use case of history, for the current principal and in its tenant."""

    tools: Tools
    writer: LogWriter
    customers: CustomerActions
    _quota: Quota = field(default_factory=lambda: Quota(_WAITING))
    _all: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE_OF_ALL))
    _turns: WeakValueDictionary[str, asyncio.Semaphore] = field(default_factory=WeakValueDictionary)

    async def import_conversation(
        self, request: history_pb.ImportConversationRequest
    ) -> history_pb.ImportConversationResponse:
        """Store what isn't there yet of a conversation. Raises the errors that the contract names."""
        principal = current_principal()
        with self._quota.taken(principal.tenant, "imports under way"):
            an_import = _Import(self, request, Actor.of(principal))
            turn = self._turns.setdefault(principal.tenant, asyncio.Semaphore(_AT_ONCE))
            async with turn, self._all:
                began = self.tools.clock.monotonic()
                try:
                    response = await an_import.store()
                except BaseException:
                    # The commit may be in doubt.
                    self.customers.notify(an_import.changed, in_doubt=True)
                    raise
                self.customers.notify(an_import.changed)
                if response.stored:
                    # Half of the time belongs to messages: the next import waits as long as this one took.
                    await asyncio.sleep(self.tools.clock.monotonic() - began)
            return response


class _Import:
    """One request."""

    def __init__(
        self, actions: HistoryActions, request: history_pb.ImportConversationRequest, who: Actor
    ) -> None:
        """Raise InvalidArgument for a request that can never be stored."""
        self.changed: set[CustomerKey] = set()
        """The customers who were there before and were changed, as (tenant, customer_id)."""
        self._tools = actions.tools
        self._writer = actions.writer
        self._who = who
        self._from = provenance_of(request)
        self._id = domain.history.conversation_id_of(who.tenant, self._from)
        self._identities = actions.customers.identities_of(request.customer)
        self._values = actions.customers.values_of(request.customer, CUSTOMER_FIELDS)
        self._past = [_past(place, each) for place, each in enumerate(request.messages)]
        domain.history.check_once(self._past)
        domain.history.check_times(self._past, self._tools.now())

    async def store(self) -> history_pb.ImportConversationResponse:
        """Store it, in the order of the conversation's partition."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                response: history_pb.ImportConversationResponse = await self._writer.bring_in(
                    self._id, len(self._past), self._work
                )
            except WriteConflict:
                # For example: another import made the same customer meanwhile.
                if attempt == _ATTEMPTS:
                    raise
                await asyncio.sleep(0.02 * 2**attempt)
                continue
            return response
        raise AssertionError("unreachable")  # pragma: no cover

    async def _work(self, uow: UnitOfWork, head: int) -> Imported:
        """Decide what is stored; `head` is the partition's last position."""
        self.changed.clear()
        c = uow.connection
        found = next(iter(await conversations.get_many(c, [self._id])), None)
        if found is not None and await history.came_from(c, self._id) != self._from:
            raise domain.history.not_imported(self._id)
        stored = await history.known(c, self._id, [each.external_id for each in self._past])
        past = domain.history.new_of(self._past, stored)
        on = self._tools.occasion(self._who)
        before, after, event = await self._customer(uow, found, on)
        item = found if found is not None and not past else self._grown(found, after, past, on)
        items = self._messages(item, after, past, head, on)
        happened = [event] if event is not None else []
        if items:
            on = replace(on, event_id=self._tools.ids.uuid7())
            first = item.head_seq + 1
            item.head_seq += len(items)
            happened.append(events.conversation_imported(on, item, after, self._from, first))

        async def flush(uow: UnitOfWork) -> list[DomainEvent]:
            if before is None:
                await customers.add(uow.connection, [after])
            elif event is not None:
                await customers.save(uow.connection, before, after)
                self.changed.add((after.tenant, after.customer_id))
            if items:
                await self._write(uow, found, item, items)
            return happened

        return Imported(self._response(item, len(items)), item, items, flush if happened else None)

    async def _write(
        self, uow: UnitOfWork, found: Conversation | None, item: Conversation, items: list[Message]
    ) -> None:
        """Write the new messages, and the conversation, which is new unless it was `found`."""
        c = uow.connection
        if found is None:
            await conversations.add(c, [item])
            now = self._tools.now()
            await history.add(c, self._id, item.tenant, self._from, now=now)
        elif not await conversations.save(c, item, old_version=found.version):
            raise WriteConflict("the conversation was changed meanwhile; try again")
        await messages.append_imported(uow, items)

    async def _customer(
        self, uow: UnitOfWork, conversation: Conversation | None, on: Occasion
    ) -> tuple[Customer | None, Customer, DomainEvent | None]:
        """Return the customer before (None: made now) and after the request, and the event of the change."""
        tenant = self._who.tenant
        owners = await customers.owners(uow.connection, tenant, self._identities)
        theirs = {conversation.customer_id} if conversation is not None else set()
        found = sorted({*owners.values(), *theirs})
        if len(found) > 1:
            raise domain.customers.identity_conflict(found[0], found[1])
        if not found:
            fresh = Customer(
                customer_id=self._tools.ids.uuid7(),
                tenant=tenant,
                identities=self._identities,
                created_at=on.now,
                updated_at=on.now,
            )
            customer = domain.customers.with_values(fresh, self._values)
            made = events.customer_created(on, customer, correlation_id=self._id)
            return None, customer, made
        before = await customers.lock(uow.connection, tenant, found[0])
        if before is None:
            raise WriteConflict("a customer disappeared; try again")
        free = [each for each in self._identities if each not in owners]
        after, changes = domain.customers.changed_customer(
            before,
            domain.customers.missing(before, self._values),
            add_identities=free[: max(0, MAX_IDENTITIES - len(before.identities))],
            now=on.now,
        )
        return before, after, events.customer_updated(on, after, changes) if changes else None

    def _grown(
        self,
        found: Conversation | None,
        customer: Customer,
        past: Sequence[PastMessage],
        on: Occasion,
    ) -> Conversation:
        if found is None:
            return domain.history.conversation_of(
                self._id, self._who.tenant, customer, past, on.traceparent
            )
        item = found.copy()
        domain.history.grow(item, past)
        return item

    def _messages(
        self,
        item: Conversation,
        customer: Customer,
        past: Sequence[PastMessage],
        head: int,
        on: Occasion,
    ) -> list[Message]:
        visitor = domain.history.visitor_of(customer) or customer.customer_id
        return [
            Message(
                message_id=self._tools.ids.uuid7(),
                conversation_id=item.conversation_id,
                tenant=item.tenant,
                seq=item.head_seq + place,
                position=head + place,
                role=int(each.role),
                subject=visitor if each.role == ActorRole.VISITOR else each.subject,
                name=each.name or (customer.display_name if each.role == ActorRole.VISITOR else ""),
                origin=self._who.origin,
                client_msg_id=each.external_id,
                body=each.body,
                created_at=each.sent_at,
                traceparent=on.traceparent,
                kind=each.kind,
                imported=True,
            )
            for place, each in enumerate(past, 1)
        ]

    def _response(self, item: Conversation, stored: int) -> history_pb.ImportConversationResponse:
        return history_pb.ImportConversationResponse(
            conversation=views.messages.conversation(item),
            stored=stored,
            duplicates=len(self._past) - stored,
        )


def _past(place: int, message: history_pb.ImportedMessage) -> PastMessage:
    """Return a message of a request. Raises InvalidArgument that names its field."""
    where = f"messages[{place}]"
    check_client_msg_id(message.external_id)
    kind = views.content.kind_of(message.content)[0]
    role = ActorRole(message.sender_role)
    if kind not in {Kind.TEXT, Kind.NOTE} or (kind == Kind.NOTE and role == ActorRole.VISITOR):
        raise InvalidArgument(
            "a message is a text, or a note of the desk", field=f"{where}.content"
        )
    time = message.sent_time
    if not 0 <= time.nanos < 1_000_000_000:
        raise InvalidArgument("nanos is 0 to 999,999,999", field=f"{where}.sent_time")
    return PastMessage(
        external_id=message.external_id,
        role=role,
        subject="" if role == ActorRole.VISITOR else message.sender_id,
        name=texts.line(message.sender_name, f"{where}.sender_name"),
        kind=kind,
        body=message.content.SerializeToString(),
        sent_at=time.seconds * 1_000_000 + time.nanos // 1_000,
    )
