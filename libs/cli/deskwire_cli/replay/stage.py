"""Plays a run: a visitor and the agent that routing finds play each dialogue, one turn after another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any, Final

import grpc
from rich.progress import Progress

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
from deskwire_cli.recorded.bounded import bounded
from deskwire_cli.recorded.dialogues import Dialogue
from deskwire_cli.replay.outcome import Outcome
from deskwire_cli.replay.run_ids import RunIds
from deskwire_client import Client, Refused
from deskwire_common.auth import Role

_PATIENCE: Final = 60.0
"""Seconds within which a turn must reach the other side."""


class _Pace:
    """At most `rate` turns a second; 0: as fast as it goes."""

    def __init__(self, rate: float) -> None:
        self._gap = 1 / rate if rate else 0.0
        self._next = 0.0

    async def wait(self) -> None:
        if not self._gap:
            return
        now = asyncio.get_running_loop().time()
        self._next = max(self._next + self._gap, now)
        await asyncio.sleep(self._next - now)


class Stage:
    """The players of one run. A turn is sent when the other side has received the one before."""

    def __init__(
        self,
        websocket: str,
        ids: RunIds,
        outcome: Outcome,
        progress: Progress,
        *,
        pairs: int,
        rate: float,
    ) -> None:
        """`pairs`: visitors and agents at once; `rate`: turns a second at the most, 0: as fast as it goes."""
        self._websocket = websocket
        self._ids = ids
        self._outcome = outcome
        self._progress = progress
        self._pairs = pairs
        self._pace = _Pace(rate)
        self._agents: dict[str, Client] = {}
        self._owner: dict[str, Client] = {}
        self._arrivals: dict[str, asyncio.Future[float]] = {}

    async def close(self) -> None:
        """Let the agents go."""
        await asyncio.gather(*(agent.close() for agent in self._agents.values()))

    async def connect_agents(self, channel: grpc.aio.Channel) -> None:
        """Connect an agent with a capacity of one for each pair."""
        task = self._progress.add_task("connecting agents", total=self._pairs)
        stub = agent_service_pb2_grpc.AgentServiceStub(channel)

        async def one(number: int) -> None:
            subject = f"agent-{number}"
            client = Client(
                self._websocket,
                self._ids.token(Role.AGENT, subject),
                on_push=lambda push: self._agent_sees(subject, push),
            )
            await client.connect()
            self._agents[subject] = client
            await stub.SetAgentStatus(
                agent_service_pb2.SetAgentStatusRequest(
                    request_id=f"{self._ids.run}-{number}",
                    agent_id=subject,
                    status=agent_pb2.AGENT_STATUS_AVAILABLE,
                    capacity=1,
                )
            )
            self._progress.advance(task)

        await bounded(one, range(self._pairs))

    def _agent_sees(self, subject: str, push: frame_pb2.Push) -> None:
        if push.HasField("conversation") and push.conversation.agent_id == subject:
            self._owner[push.conversation.conversation_id] = self._agents[subject]
        elif push.HasField("message") and push.message.sender.role == actor_pb2.ROLE_VISITOR:
            self._owner.setdefault(push.message.conversation_id, self._agents[subject])
            self._arrived(push.message)

    def _visitor_sees(self, push: frame_pb2.Push) -> None:
        if push.HasField("message") and push.message.sender.role == actor_pb2.ROLE_AGENT:
            self._arrived(push.message)

    def _arrived(self, message: conversation_pb2.Message) -> None:
        future = self._arrivals.get(message.client_msg_id)
        if future is not None and not future.done():
            future.set_result(time.perf_counter())

    async def play(self, channel: grpc.aio.Channel, dialogues: Iterable[Dialogue]) -> None:
        """Play all dialogues; failures are in the outcome."""
        task = self._progress.add_task("playing turns", total=self._outcome.balance.played)
        waiting = iter(dialogues)
        stub = conversation_service_pb2_grpc.ConversationServiceStub(channel)

        async def pair() -> None:
            for dialogue in waiting:
                conversation_id = self._ids.conversation(dialogue)
                # Somebody else each time, as a customer opens only a few conversations within a minute.
                token = self._ids.token(Role.VISITOR, conversation_id)
                try:
                    async with Client(
                        self._websocket, token, on_push=self._visitor_sees
                    ) as visitor:
                        await self._dialogue(dialogue, visitor, task)
                except (Refused, TimeoutError, OSError) as error:
                    self._outcome.fail(f"{dialogue.place}: {str(error) or type(error).__name__}")
                await stub.CloseConversation(
                    conversation_service_pb2.CloseConversationRequest(
                        request_id=conversation_id, conversation_id=conversation_id
                    )
                )

        await asyncio.gather(*(pair() for _ in range(self._pairs)))

    async def _dialogue(self, dialogue: Dialogue, visitor: Client, task: Any) -> None:
        conversation_id = self._ids.conversation(dialogue)
        for turn in dialogue.turns:
            await self._pace.wait()
            sender = visitor if turn.visitor else self._owner[conversation_id]
            key = self._ids.message(dialogue, turn)
            arrival: asyncio.Future[float] = asyncio.get_running_loop().create_future()
            self._arrivals[key] = arrival
            started = time.perf_counter()
            async with asyncio.timeout(_PATIENCE):
                await sender.send(conversation_id, turn.text, client_msg_id=key)
                self._outcome.ack.append(time.perf_counter() - started)
                self._outcome.acked += 1
                self._outcome.delivery.append(await arrival - started)
            del self._arrivals[key]
            self._progress.advance(task)
        self._owner.pop(conversation_id, None)
