"""`deskwire chat`: be a visitor or an agent in the terminal. A line is a message; `/help` shows the rest."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import uuid
from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Annotated

import grpc
import typer

from deskwire.chat.v1 import (
    agent_pb2,
    agent_service_pb2,
    agent_service_pb2_grpc,
    conversation_pb2,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
)
from deskwire.common.v1 import actor_pb2
from deskwire.gateway.v1 import frame_pb2
from deskwire_cli.machine.problem import Problem
from deskwire_cli.plain import plain
from deskwire_cli.suite import TENANT, Suite, load_suite
from deskwire_client import Client, Closed, Refused
from deskwire_common.auth import Role
from deskwire_common.errors import from_rpc_error
from deskwire_common.rpc import make_channel

HELP = (
    "a line is a message; agents: /list, /open N, /close, /accept, /decline; /quit or Ctrl-D leaves"
)


class Side(StrEnum):
    """The role of this person."""

    VISITOR = "visitor"
    AGENT = "agent"


class Terminal:
    """One person's side of their conversations."""

    def __init__(self, side: Side, subject: str, chat: grpc.aio.Channel) -> None:
        self.client: Client | None = None
        self._side = side
        self._subject = subject
        self._conversations = conversation_service_pb2_grpc.ConversationServiceStub(chat)
        self._agents = agent_service_pb2_grpc.AgentServiceStub(chat)
        # The open conversations in the order of their arrival, and the one that lines are sent to.
        self._open: dict[str, conversation_pb2.Conversation] = {}
        self._current = ""
        # The offers to the agent in the order of their arrival: the agent answers the first one.
        self._offers: list[str] = []

    async def set_available(self, available: bool) -> None:
        """Set an agent available: only then do they get conversations."""
        if self._side is Side.AGENT:
            status = agent_pb2.AGENT_STATUS_AVAILABLE if available else agent_pb2.AGENT_STATUS_AWAY
            await self._agents.SetAgentStatus(
                agent_service_pb2.SetAgentStatusRequest(request_id=str(uuid.uuid4()), status=status)
            )

    def see(self, push: frame_pb2.Push) -> None:
        """Print what happened."""
        if push.HasField("message"):
            self._see_message(push.message)
        elif push.HasField("conversation"):
            self._see_conversation(push.conversation)
        elif push.HasField("offer"):
            self._see_offer(push.offer)
        elif push.HasField("offer_ended"):
            self._see_end(push.offer_ended)
        elif push.HasField("customer"):
            customer = push.customer
            who, reached = customer.display_name, f"{customer.mobile} {customer.email}"
            print(f"* customer {plain(who)}: {plain(reached)}")

    def _see_message(self, message: conversation_pb2.Message) -> None:
        sender = message.sender
        if not self._current:
            self._current = message.conversation_id
        # This person's own messages were typed here: the client hands them out without a sender.
        others = sender.subject != self._subject or sender.role == actor_pb2.ROLE_SYSTEM
        if others and sender.role != actor_pb2.ROLE_UNSPECIFIED:
            who = sender.display_name or sender.subject or "deskwire"
            text = message.content.text
            if message.content.HasField("attachment"):
                text = f"[{message.content.attachment.file_name}]"
            print(f"{self._label(message.conversation_id)}{plain(who)}: {plain(text)}")

    def _see_conversation(self, conversation: conversation_pb2.Conversation) -> None:
        place = conversation.conversation_id
        before = self._open.get(place)
        if conversation.state == conversation_pb2.CONVERSATION_STATE_CLOSED:
            print(f"* {self._label(place)}closed")
            self._open.pop(place, None)
            if self._current == place:
                self._current = next(iter(self._open), "")
            return
        self._open[place] = conversation
        self._current = self._current or place
        if before is None or before.agent_id != conversation.agent_id:
            who = plain(conversation.agent_id) or "nobody yet: please wait"
            print(f"* {self._label(place)}with {who}")

    def _see_offer(self, offer: frame_pb2.Offer) -> None:
        place = offer.conversation.conversation_id
        if place not in self._offers:
            self._offers.append(place)
        who = offer.customer.display_name or offer.conversation.visitor_id
        print(f"* {plain(who)} waits: /accept or /decline")

    def _see_end(self, ended: frame_pb2.OfferEnded) -> None:
        if ended.conversation_id in self._offers:
            self._offers.remove(ended.conversation_id)
        if ended.reason != frame_pb2.OFFER_END_REASON_ACCEPTED:
            reason = frame_pb2.OfferEndReason.Name(ended.reason)
            print(f"* the offer is {reason.removeprefix('OFFER_END_REASON_').lower()}")

    def _label(self, conversation_id: str) -> str:
        if self._side is Side.VISITOR or conversation_id not in self._open:
            return ""
        return f"[{list(self._open).index(conversation_id) + 1}] "

    async def enter(self, line: str) -> bool:
        """Send a line or run its command; return whether to go on."""
        word, _, rest = line.partition(" ")
        if word == "/quit":
            return False
        if word == "/help":
            print(HELP)
        elif word == "/list":
            for number, place in enumerate(self._open, 1):
                print(f"{'>' if place == self._current else ' '} [{number}] {plain(place)}")
        elif word == "/open":
            self._choose(rest)
        elif word == "/close":
            await self._close()
        elif word in {"/accept", "/decline"}:
            await self._answer(accept=word == "/accept")
        elif line.strip():
            await self._send(line)
        return True

    def _choose(self, number: str) -> None:
        places = list(self._open)
        if number.isdigit() and 0 < int(number) <= len(places):
            self._current = places[int(number) - 1]
        else:
            print(f"there is no conversation {plain(number)}: see /list")

    async def _send(self, text: str) -> None:
        if not self._current and self._side is Side.AGENT:
            print("no visitor has come yet")
            return
        self._current = self._current or str(uuid.uuid4())
        if self.client is not None:
            await self.client.send(self._current, text)

    async def _answer(self, *, accept: bool) -> None:
        if not self._offers:
            print("nothing is offered to you")
            return
        place, request_id = self._offers[0], str(uuid.uuid4())
        try:
            if accept:
                await self._agents.AcceptOffer(
                    agent_service_pb2.AcceptOfferRequest(
                        request_id=request_id, conversation_id=place
                    )
                )
            else:
                await self._agents.DeclineOffer(
                    agent_service_pb2.DeclineOfferRequest(
                        request_id=request_id, conversation_id=place
                    )
                )
        except grpc.aio.AioRpcError as error:
            # Another agent was faster: this one goes on.
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            print(f"* {plain(from_rpc_error(error))}")

    async def _close(self) -> None:
        if not self._current:
            print("no conversation is open")
            return
        asked = conversation_service_pb2.GetConversationRequest(conversation_id=self._current)
        found = (await self._conversations.GetConversation(asked)).conversation
        await self._conversations.CloseConversation(
            conversation_service_pb2.CloseConversationRequest(
                request_id=str(uuid.uuid4()),
                conversation_id=found.conversation_id,
                expected_version=found.version,
            )
        )


async def typed() -> AsyncIterator[str]:
    """Yield the lines of stdin. A thread reads them: no other way to wait for a terminal works on every system."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str | None] = asyncio.Queue()

    def read() -> None:
        with contextlib.suppress(RuntimeError):  # the loop ended meanwhile
            for line in sys.stdin:
                loop.call_soon_threadsafe(lines.put_nowait, line.rstrip("\n"))
            loop.call_soon_threadsafe(lines.put_nowait, None)

    threading.Thread(target=read, name="stdin", daemon=True).start()
    while (line := await lines.get()) is not None:
        yield line


async def run(suite: Suite, side: Side, subject: str, name: str, tenant: str) -> None:
    """Run until /quit or the end of stdin. Raises Problem."""
    token = suite.token(Role(side.value), subject, tenant=tenant, name=name, seconds=8 * 3600.0)
    async with make_channel(suite.chat, token=lambda: token) as chat:
        terminal = Terminal(side, subject, chat)
        try:
            async with Client(suite.websocket, token, on_push=terminal.see) as client:
                terminal.client = client
                await terminal.set_available(True)
                print(f"you are {side.value} {name or subject}; {HELP}", file=sys.stderr)
                try:
                    async for line in typed():
                        if not await terminal.enter(line):
                            break
                finally:
                    await terminal.set_available(False)
        except grpc.aio.AioRpcError as error:
            raise Problem(plain(from_rpc_error(error))) from None
        except (Refused, Closed, OSError) as error:
            raise Problem(plain(error)) from None


def chat(
    side: Annotated[Side, typer.Option("--as", help="Who you are.")] = Side.VISITOR,
    subject: Annotated[str, typer.Option(help="Your id: a customer number, an agent's id.")] = "",
    name: Annotated[str, typer.Option(help="The name that others see.")] = "",
    tenant: Annotated[str, typer.Option(help="Whose desk.")] = TENANT,
) -> None:
    """Be a visitor or an agent in the terminal."""
    suite = load_suite()
    subject = subject or ("alice" if side is Side.AGENT else f"guest-{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(suite, side, subject, name, tenant))
