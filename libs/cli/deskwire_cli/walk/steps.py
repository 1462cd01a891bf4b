"""The steps of the walk.

A visitor writes, routing finds an agent, the CRM's clerk changes a phone number, the agent corrects an e-mail address,
and opens and solves a ticket. Every step waits until the other side has really seen it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Final

import grpc

from demo_crm.connect import SYSTEM_ID
from deskwire.chat.v1 import (
    agent_pb2,
    customer_pb2,
    customer_service_pb2,
    customer_service_pb2_grpc,
)
from deskwire.common.v1 import actor_pb2
from deskwire.tickets.v1 import ticket_service_pb2, ticket_service_pb2_grpc
from deskwire_cli.machine.problem import Problem
from deskwire_cli.suite import Suite
from deskwire_cli.walk.desk import AGENT, close_conversations, set_status
from deskwire_cli.walk.timeline import Step, Timeline
from deskwire_cli.walk.witness import PATIENCE, Event, Screen, Witness
from deskwire_client import Client, Closed, Refused
from deskwire_common.auth import Role
from deskwire_common.errors import from_rpc_error
from deskwire_common.rpc import make_channel

CUSTOMER_NO: Final = "1001"
"""Li Na in the demo CRM, who signs in to the shop with this number, and her second order."""
ORDER_NO: Final = "A-5002"


class Walk:
    """Plays the walk once against a running suite with its demo CRM. The walk can be repeated."""

    def __init__(self, suite: Suite, tell: Callable[[Step], None] = lambda _: None) -> None:
        """`tell` is called with each step when it is done."""
        self.conversation_id = str(uuid.uuid4())
        self.customer_id = ""
        self.version = 0
        self.ticket_id = ""
        self.trace_id = secrets.token_hex(16)
        self.phone = f"+86138{secrets.randbelow(10**8):08d}"
        self.email = f"li.na.{secrets.token_hex(3)}@example.com"
        self.order_state = f"shipped {datetime.now(UTC):%H:%M:%S.%f}"
        self.timeline = Timeline(tell)
        self._suite = suite
        self._seen = Witness(suite)

    async def play(self) -> None:
        """Play all steps. Raises Problem when something isn't seen in time, or something is seen that must not be."""
        try:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(self._seen.following())
                token = self._suite.token(Role.AGENT, AGENT, name="Alice")
                chat = await stack.enter_async_context(
                    make_channel(self._suite.chat, token=lambda: token)
                )
                tickets = await stack.enter_async_context(
                    make_channel(self._suite.tickets, token=lambda: token)
                )
                agent = await self._agent_comes(stack, chat, token)
                visitor = await self._visitor_comes(stack)
                await self._talk(visitor, agent)
                version = await self._crm_changes_phone(chat)
                await self._agent_corrects_email(chat, version)
                await self._agent_solves_ticket(tickets)
                await self._crm_ships_order()
                await self._agent_goes(chat)
                self._check()
        except grpc.aio.AioRpcError as error:
            raise Problem(f"the walk was refused: {from_rpc_error(error)}") from None
        except (Refused, Closed, OSError) as error:
            raise Problem(f"the walk was refused: {error}") from None

    # ----------------------------------------------------------------------------------------- steps

    async def _agent_comes(
        self, stack: AsyncExitStack, chat: grpc.aio.Channel, token: str
    ) -> Client:
        await close_conversations(chat)  # left by a walk that was broken off
        self.timeline.cause()
        agent = await stack.enter_async_context(
            Client(self._suite.websocket, token, on_push=self._seen.agent.see)
        )
        await set_status(chat, agent_pb2.AGENT_STATUS_AVAILABLE)
        self.timeline.done("agent Alice is connected and available")
        return agent

    async def _visitor_comes(self, stack: AsyncExitStack) -> Client:
        token = self._suite.token(Role.VISITOR, CUSTOMER_NO, name="Li Na")
        self.timeline.cause()
        visitor = await stack.enter_async_context(
            Client(self._suite.websocket, token, on_push=self._seen.visitor.see)
        )
        self.timeline.done("visitor Li Na is connected")
        return visitor

    async def _talk(self, visitor: Client, agent: Client) -> None:
        question, answer = "Hello, where is my desk lamp?", "Hello Li Na, let me look."
        self.timeline.cause()
        sending = asyncio.ensure_future(
            visitor.send(
                self.conversation_id,
                question,
                traceparent=f"00-{self.trace_id}-{secrets.token_hex(8)}-01",
            )
        )
        acked: list[float] = []
        sending.add_done_callback(lambda _: acked.append(time.perf_counter()))
        await self._message(self._seen.agent, question)
        seen = time.perf_counter()
        await sending
        self.timeline.done("Li Na's first message is stored and acknowledged", at=acked[0])
        self.timeline.done("Alice has it: routing gave her the conversation", at=seen)
        await self._seen.until(
            lambda: self._seen.visitor.message(self.conversation_id, sender=actor_pb2.ROLE_SYSTEM),
            "the greeting",
        )
        self.timeline.done("Li Na is greeted by routing")
        self.timeline.cause()
        await agent.send(self.conversation_id, answer)
        await self._message(self._seen.visitor, answer)
        self.timeline.done("Alice's answer is on Li Na's screen")
        await self._seen.until(
            lambda: self._crm_has("conversation_opened"), "the CRM's first event"
        )
        self.timeline.done("the CRM has conversation_opened, over Kafka, hub and adapter")

    async def _crm_changes_phone(self, chat: grpc.aio.Channel) -> int:
        """Return the customer's version after the step."""
        stub = customer_service_pb2_grpc.CustomerServiceStub(chat)
        asked = customer_pb2.Identity(namespace=SYSTEM_ID, value=CUSTOMER_NO)
        async with asyncio.timeout(PATIENCE):
            while (
                not self.customer_id
            ):  # change capture delivers the CRM's customers at its first start
                try:
                    found = await stub.LookupCustomer(
                        customer_service_pb2.LookupCustomerRequest(identity=asked)
                    )
                    self.customer_id = found.customer.customer_id
                    self.version = found.customer.version
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.NOT_FOUND:
                        raise
                    await asyncio.sleep(0.1)
        self.timeline.cause()
        await asyncio.to_thread(self._seen.crm.set_phone, CUSTOMER_NO, self.phone)
        customer = await self._seen.until(
            lambda: next(
                (
                    each.customer
                    for each in self._seen.agent.pushes
                    if each.HasField("customer") and each.customer.mobile == self.phone
                ),
                None,
            ),
            "the new phone number on Alice's screen",
        )
        self.timeline.done("the CRM's clerk changed the phone number; Alice sees it")
        return customer.version

    async def _agent_corrects_email(self, chat: grpc.aio.Channel, version: int) -> None:
        request = customer_service_pb2.UpdateCustomerRequest(
            request_id=str(uuid.uuid4()),
            customer=customer_pb2.Customer(customer_id=self.customer_id, email=self.email),
            expected_version=version,
        )
        request.update_mask.paths.append("email")
        self.timeline.cause()
        await customer_service_pb2_grpc.CustomerServiceStub(chat).UpdateCustomer(request)
        await self._seen.until(
            lambda: self._crm_has("customer_updated"), "customer_updated in the CRM"
        )
        self.timeline.done("Alice corrected the e-mail address; the CRM has it")

    async def _agent_solves_ticket(self, tickets: grpc.aio.Channel) -> None:
        stub = ticket_service_pb2_grpc.TicketServiceStub(tickets)
        self.timeline.cause()
        created = await stub.CreateTicket(
            ticket_service_pb2.CreateTicketRequest(
                request_id=str(uuid.uuid4()),
                conversation_id=self.conversation_id,
                subject="Desk lamp is late",
            )
        )
        self.ticket_id = created.ticket.ticket_id
        await self._seen.until(lambda: self._crm_has("ticket_created"), "ticket_created in the CRM")
        self.timeline.done(f"Alice opened ticket {created.ticket.number}; the CRM has it")
        self.timeline.cause()
        await stub.SolveTicket(
            ticket_service_pb2.SolveTicketRequest(
                request_id=str(uuid.uuid4()),
                ticket_id=self.ticket_id,
                expected_version=created.ticket.version,
                resolution="It leaves the warehouse today.",
            )
        )
        await self._seen.until(lambda: self._crm_has("ticket_solved"), "ticket_solved in the CRM")
        self.timeline.done("Alice solved it; the CRM has that too")

    async def _crm_ships_order(self) -> None:
        """After this step, everything that change capture read before is on Kafka: an echo would be seen."""
        self.timeline.cause()
        await asyncio.to_thread(self._seen.crm.set_order_state, ORDER_NO, self.order_state)
        await self._seen.until(
            lambda: [
                each
                for each in self._seen.of("row_changed")
                if each["data"].get("after", {}).get("state") == self.order_state
            ],
            "the order's row on Kafka",
        )
        self.timeline.done("the CRM shipped the order; its row is on Kafka")

    async def _agent_goes(self, chat: grpc.aio.Channel) -> None:
        self.timeline.cause()
        await set_status(chat, agent_pb2.AGENT_STATUS_AWAY)
        await close_conversations(chat)
        await self._seen.until(lambda: self._crm_has("conversation_closed"), "conversation_closed")
        self.timeline.done("Alice closed the conversation; the CRM knows")

    def _check(self) -> None:
        """Check that nothing happened that must not, and the forms of what did happen. Raises Problem."""
        to_crm = self._crm_got("customer_updated")
        if [each["origin"] for each in to_crm] != ["deskwire"]:
            raise Problem("a change of the CRM was pushed back to it")
        echoes = [
            each
            for each in self._seen.of("row_changed")
            if each["data"]["table"] == "customers"
            and each["data"].get("after", {}).get("email") == self.email
            and each["data"].get("before", {}).get("email") != self.email
        ]
        if echoes:
            raise Problem("the CRM's copy of a change of the desk came back from its database")
        updates = [
            each
            for each in self._seen.of("customer_updated")
            # The CRM's row may have come after the visitor, and have changed the customer that they became.
            if each["subject"] == self.customer_id and each["sequence"] > self.version
        ]
        if [sorted(each["data"]["changed"]) for each in updates] != [["mobile"], ["email"]]:
            raise Problem(
                f"the customer changed otherwise than by one number and one address: {updates}"
            )
        opened = self._crm_got("conversation_opened")[0]
        if opened["trace_id"] != self.trace_id or self.trace_id not in opened["traceparent"]:
            raise Problem("the trace of the visitor's frame didn't reach the CRM")

    # -------------------------------------------------------------------------------- what was seen

    def received(self) -> list[Event]:
        """Return what the CRM was sent since the walk began, from its database."""
        return self._seen.received()

    async def _message(self, screen: Screen, text: str) -> None:
        await self._seen.until(
            lambda: screen.message(self.conversation_id, text=text), f"the message {text!r}"
        )

    def _crm_got(self, event_type: str) -> list[Event]:
        """Return what the CRM was sent about this walk over gRPC, from its database."""
        ours = {self.conversation_id, self.customer_id, self.ticket_id}
        return [
            each
            for each in self.received()
            if each["event_type"] == event_type and each["subject"] in ours
        ]

    def _crm_has(self, event_type: str) -> bool:
        return bool(self._crm_got(event_type))
