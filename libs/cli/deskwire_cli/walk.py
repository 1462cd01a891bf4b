"""`deskwire walk`: one real conversation through all five services, the demo CRM and Kafka, as a timeline.

A visitor writes, routing finds an agent, the CRM's clerk changes a phone number, the agent corrects an e-mail address,
and opens and solves a ticket. Every step waits until the other side has really seen it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

import grpc
import typer

from demo_crm.connect import SYSTEM_ID
from demo_crm.store import CrmDatabase
from deskwire.chat.v1 import (
    agent_pb2,
    agent_service_pb2,
    agent_service_pb2_grpc,
    conversation_pb2,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
    customer_pb2,
    customer_service_pb2,
    customer_service_pb2_grpc,
)
from deskwire.common.v1 import actor_pb2
from deskwire.gateway.v1 import frame_pb2
from deskwire.tickets.v1 import ticket_service_pb2, ticket_service_pb2_grpc
from deskwire_cli import tail
from deskwire_cli.machine.problem import Problem
from deskwire_cli.suite import Suite, load_suite, open_channel
from deskwire_client import Client, Closed, Refused
from deskwire_common.auth import Role
from deskwire_common.errors import from_rpc_error
from deskwire_common.rpc import make_channel

T = TypeVar("T")
Event = dict[str, Any]

AGENT: Final = "alice"
#: Li Na in the demo CRM, who signs in to the shop with this number, and her second order.
CUSTOMER_NO: Final = "1001"
ORDER_NO: Final = "A-5002"
#: How long anything may take before the walk has failed.
PATIENCE: Final = 20.0
#: How often what doesn't call us (the CRM's own database) is looked at.
_LOOK: Final = 0.01


@dataclass(frozen=True, slots=True)
class Step:
    """A line of the timeline: what was seen, `seconds` after the start, `milliseconds` after its cause."""

    seconds: float
    milliseconds: float
    what: str


class Walk:
    """Plays the walk once against a running suite with its demo CRM. It can be played again and again."""

    def __init__(self, suite: Suite, tell: Callable[[Step], None] = lambda _: None) -> None:
        """`tell` hears of each step when it is done."""
        self.conversation_id = str(uuid.uuid4())
        self.customer_id = ""
        self.ticket_id = ""
        self.trace_id = secrets.token_hex(16)
        self.phone = f"+86138{secrets.randbelow(10**8):08d}"
        self.email = f"li.na.{secrets.token_hex(3)}@example.com"
        self.order_state = f"shipped {datetime.now(UTC):%H:%M:%S.%f}"
        self.steps: list[Step] = []
        # What the hub showed since the walk began, each event with its place on Kafka.
        self.events: list[Event] = []
        self._suite = suite
        self._tell = tell
        self._crm = CrmDatabase(suite.crm_database)
        self._crm_had = len(self._crm.received())
        self._visitor_saw: list[frame_pb2.Push] = []
        self._agent_saw: list[frame_pb2.Push] = []
        self._news = asyncio.Event()
        self._began = self._cause = time.perf_counter()

    async def play(self) -> None:
        """All steps. Raises Problem when something isn't seen in time, or was seen that must not be."""
        try:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(self._following())
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
        await self._close_conversations(chat)  # of a walk that was broken off
        self._now()
        agent = await stack.enter_async_context(
            Client(self._suite.websocket, token, on_push=self._sees(self._agent_saw))
        )
        await self._set_status(chat, agent_pb2.AGENT_STATUS_AVAILABLE)
        self._done("agent Alice is connected and available")
        return agent

    async def _visitor_comes(self, stack: AsyncExitStack) -> Client:
        token = self._suite.token(Role.VISITOR, CUSTOMER_NO, name="Li Na")
        self._now()
        visitor = await stack.enter_async_context(
            Client(self._suite.websocket, token, on_push=self._sees(self._visitor_saw))
        )
        self._done("visitor Li Na is connected")
        return visitor

    async def _talk(self, visitor: Client, agent: Client) -> None:
        question, answer = "Hello, where is my desk lamp?", "Hello Li Na, let me look."
        self._now()
        sending = asyncio.ensure_future(
            visitor.send(
                self.conversation_id,
                question,
                traceparent=f"00-{self.trace_id}-{secrets.token_hex(8)}-01",
            )
        )
        acked: list[float] = []
        sending.add_done_callback(lambda _: acked.append(time.perf_counter()))
        await self._message(self._agent_saw, question)
        seen = time.perf_counter()
        await sending
        self._done("Li Na's first message is stored and acknowledged", at=acked[0])
        self._done("Alice has it: routing gave her the conversation", at=seen)
        await self._until(
            lambda: self._pushed(self._visitor_saw, sender=actor_pb2.ROLE_SYSTEM), "the greeting"
        )
        self._done("Li Na is greeted by routing")
        self._now()
        await agent.send(self.conversation_id, answer)
        await self._message(self._visitor_saw, answer)
        self._done("Alice's answer is on Li Na's screen")
        await self._until(lambda: self._crm_has("conversation_opened"), "the CRM's first event")
        self._done("the CRM has conversation_opened, over Kafka, hub and adapter")

    async def _crm_changes_phone(self, chat: grpc.aio.Channel) -> int:
        """The customer's version after it."""
        stub = customer_service_pb2_grpc.CustomerServiceStub(chat)
        asked = customer_pb2.Identity(namespace=SYSTEM_ID, value=CUSTOMER_NO)
        async with asyncio.timeout(PATIENCE):
            while (
                not self.customer_id
            ):  # change capture brings the CRM's customers at its first start
                try:
                    found = await stub.LookupCustomer(
                        customer_service_pb2.LookupCustomerRequest(identity=asked)
                    )
                    self.customer_id = found.customer.customer_id
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.NOT_FOUND:
                        raise
                    await asyncio.sleep(0.1)
        self._now()
        await asyncio.to_thread(self._crm.set_phone, CUSTOMER_NO, self.phone)
        customer = await self._until(
            lambda: next(
                (
                    each.customer
                    for each in self._agent_saw
                    if each.HasField("customer") and each.customer.mobile == self.phone
                ),
                None,
            ),
            "the new phone number on Alice's screen",
        )
        self._done("the CRM's clerk changed the phone number; Alice sees it")
        return customer.version

    async def _agent_corrects_email(self, chat: grpc.aio.Channel, version: int) -> None:
        request = customer_service_pb2.UpdateCustomerRequest(
            request_id=str(uuid.uuid4()),
            customer=customer_pb2.Customer(customer_id=self.customer_id, email=self.email),
            expected_version=version,
        )
        request.update_mask.paths.append("email")
        self._now()
        await customer_service_pb2_grpc.CustomerServiceStub(chat).UpdateCustomer(request)
        await self._until(lambda: self._crm_has("customer_updated"), "customer_updated in the CRM")
        self._done("Alice corrected the e-mail address; the CRM has it")

    async def _agent_solves_ticket(self, tickets: grpc.aio.Channel) -> None:
        stub = ticket_service_pb2_grpc.TicketServiceStub(tickets)
        self._now()
        created = await stub.CreateTicket(
            ticket_service_pb2.CreateTicketRequest(
                request_id=str(uuid.uuid4()),
                conversation_id=self.conversation_id,
                subject="Desk lamp is late",
            )
        )
        self.ticket_id = created.ticket.ticket_id
        await self._until(lambda: self._crm_has("ticket_created"), "ticket_created in the CRM")
        self._done(f"Alice opened ticket {created.ticket.number}; the CRM has it")
        self._now()
        await stub.SolveTicket(
            ticket_service_pb2.SolveTicketRequest(
                request_id=str(uuid.uuid4()),
                ticket_id=self.ticket_id,
                expected_version=created.ticket.version,
                resolution="It leaves the warehouse today.",
            )
        )
        await self._until(lambda: self._crm_has("ticket_solved"), "ticket_solved in the CRM")
        self._done("Alice solved it; the CRM has that too")

    async def _crm_ships_order(self) -> None:
        """After it, everything that change capture read before is on Kafka: an echo would be seen."""
        self._now()
        await asyncio.to_thread(self._crm.set_order_state, ORDER_NO, self.order_state)
        await self._until(
            lambda: [
                each
                for each in self._of("row_changed")
                if each["data"].get("after", {}).get("state") == self.order_state
            ],
            "the order's row on Kafka",
        )
        self._done("the CRM shipped the order; its row is on Kafka")

    async def _agent_goes(self, chat: grpc.aio.Channel) -> None:
        self._now()
        await self._set_status(chat, agent_pb2.AGENT_STATUS_AWAY)
        await self._close_conversations(chat)
        await self._until(lambda: self._crm_has("conversation_closed"), "conversation_closed")
        self._done("Alice closed the conversation; the CRM knows")

    def _check(self) -> None:
        """What must not have happened, and the forms of what has. Raises Problem."""
        to_crm = self._crm_got("customer_updated")
        if [each["origin"] for each in to_crm] != ["deskwire"]:
            raise Problem("a change of the CRM was pushed back to it")
        echoes = [
            each
            for each in self._of("row_changed")
            if each["data"]["table"] == "customers"
            and each["data"].get("after", {}).get("email") == self.email
            and each["data"].get("before", {}).get("email") != self.email
        ]
        if echoes:
            raise Problem("the CRM's copy of a change of the desk came back from its database")
        updates = [
            each for each in self._of("customer_updated") if each["subject"] == self.customer_id
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
        """What the CRM was sent since the walk began, as its database says."""
        return self._crm.received()[self._crm_had :]

    @asynccontextmanager
    async def _following(self) -> AsyncIterator[None]:
        """Collect the hub's events of this tenant from now on."""
        token = self._suite.token(Role.OPERATOR, "deskwire-walk")
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def follow() -> None:
            async with open_channel(self._suite.events) as channel:
                start = tail.start_at("latest", now=datetime.now(UTC))
                async for delivery in tail.subscribe(channel, token, start):
                    self.events += delivery.events
                    self._news.set()
                    if not begun.done():
                        begun.set_result(None)

        async with asyncio.timeout(PATIENCE):
            following = asyncio.create_task(follow())
            await asyncio.wait([following, begun], return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()
        try:
            yield
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    def _sees(self, screen: list[frame_pb2.Push]) -> Callable[[frame_pb2.Push], None]:
        def see(push: frame_pb2.Push) -> None:
            screen.append(push)
            self._news.set()

        return see

    async def _message(self, screen: list[frame_pb2.Push], text: str) -> None:
        await self._until(lambda: self._pushed(screen, text=text), f"the message {text!r}")

    def _pushed(
        self, screen: list[frame_pb2.Push], *, text: str = "", sender: int = 0
    ) -> frame_pb2.Push | None:
        for each in screen:
            message = each.message
            if message.conversation_id == self.conversation_id and (
                message.content.text == text or message.sender.role == sender != 0
            ):
                return each
        return None

    def _crm_got(self, event_type: str) -> list[Event]:
        """What the CRM was sent of this walk, over gRPC, as its database says."""
        ours = {self.conversation_id, self.customer_id, self.ticket_id}
        return [
            each
            for each in self.received()
            if each["event_type"] == event_type and each["subject"] in ours
        ]

    def _crm_has(self, event_type: str) -> bool:
        return bool(self._crm_got(event_type))

    def _of(self, event_type: str) -> list[Event]:
        return [each for each in self.events if each["event_type"] == event_type]

    async def _until(self, seen: Callable[[], T | None], what: str) -> T:
        """Wait until it is there. Raises Problem after a while, with what was waited for."""
        deadline = time.perf_counter() + PATIENCE
        while not (found := seen()):
            if time.perf_counter() > deadline:
                raise Problem(f"the walk waited {PATIENCE:g} s in vain for {what}")
            self._news.clear()
            try:
                async with asyncio.timeout(_LOOK):
                    await self._news.wait()
            except TimeoutError:
                continue
        return found

    def _now(self) -> None:
        """The cause of the next step."""
        self._cause = time.perf_counter()

    def _done(self, what: str, *, at: float | None = None) -> None:
        seen = time.perf_counter() if at is None else at
        step = Step(round(seen - self._began, 3), round((seen - self._cause) * 1000, 1), what)
        self.steps.append(step)
        self._tell(step)

    # ------------------------------------------------------------------------------------ the desk

    async def _set_status(
        self, chat: grpc.aio.Channel, status: agent_pb2.AgentStatus.ValueType
    ) -> None:
        await agent_service_pb2_grpc.AgentServiceStub(chat).SetAgentStatus(
            agent_service_pb2.SetAgentStatusRequest(
                request_id=str(uuid.uuid4()), status=status, display_name="Alice"
            )
        )

    async def _close_conversations(self, chat: grpc.aio.Channel) -> None:
        stub = conversation_service_pb2_grpc.ConversationServiceStub(chat)
        active = await stub.ListConversations(
            conversation_service_pb2.ListConversationsRequest(
                states=[conversation_pb2.CONVERSATION_STATE_ACTIVE], agent_id=AGENT
            )
        )
        for each in active.conversations:
            await stub.CloseConversation(
                conversation_service_pb2.CloseConversationRequest(
                    request_id=str(uuid.uuid4()),
                    conversation_id=each.conversation_id,
                    expected_version=each.version,
                )
            )


def show(step: Step) -> None:
    """One line of the timeline."""
    print(f"{step.seconds:8.3f} s {step.milliseconds:8.1f} ms  {step.what}", flush=True)


async def play(suite: Suite) -> None:
    """The walk, printed as it goes. Raises Problem."""
    if not suite.crm:
        raise Problem("this suite runs without the demo CRM: start it without --no-demo")
    print("   since start    latency  the walk", flush=True)
    played = Walk(suite, show)
    try:
        await played.play()
    except sqlite3.Error as error:
        raise Problem(f"the demo CRM's database: {error}") from None
    print(f"one trace through all of it: {played.trace_id}", flush=True)


def walk(
    as_json: Annotated[
        bool, typer.Option("--json", help="The steps as JSON on stdout, when it is over.")
    ] = False,
) -> None:
    """Play one conversation through all five services and the demo CRM; exit 1 when a step fails."""
    suite = load_suite()
    if not as_json:
        asyncio.run(play(suite))
        return
    played = Walk(suite)
    asyncio.run(played.play())
    print(
        json.dumps(
            {
                "trace_id": played.trace_id,
                "conversation_id": played.conversation_id,
                "customer_id": played.customer_id,
                "ticket_id": played.ticket_id,
                "steps": [asdict(each) for each in played.steps],
            }
        )
    )
