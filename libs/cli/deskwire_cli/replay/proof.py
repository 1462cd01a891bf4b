"""The proof of a run: history over gRPC and the topic from Kafka, compared with the file."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import grpc
from rich.progress import Progress

from deskwire.chat.v1 import (
    conversation_pb2,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
)
from deskwire.common.v1 import actor_pb2
from deskwire_cli.replay.bounded import bounded
from deskwire_cli.replay.dialogues import Dialogue
from deskwire_cli.replay.outcome import Outcome
from deskwire_cli.replay.run_ids import RunIds
from deskwire_common import events, topics
from deskwire_common.kafka import Reader

_PATIENCE: Final = 60.0
"""Seconds until the topic must have everything."""

History = list[conversation_pb2.Message]


class Proof:
    """Reads one run back, and puts what is wrong into `outcome`."""

    def __init__(
        self, ids: RunIds, dialogues: Sequence[Dialogue], outcome: Outcome, progress: Progress
    ) -> None:
        self._ids = ids
        self._dialogues = dialogues
        self._outcome = outcome
        self._progress = progress
        self._histories: dict[str, History] = {}

    async def read_history(self, channel: grpc.aio.Channel) -> None:
        """Read every conversation back, and compare it with its dialogue."""
        task = self._progress.add_task("reading history back", total=len(self._dialogues))
        stub = conversation_service_pb2_grpc.ConversationServiceStub(channel)

        async def one(dialogue: Dialogue) -> None:
            conversation_id = self._ids.conversation(dialogue)
            self._histories[conversation_id] = await _history(stub, conversation_id)
            self._progress.advance(task)

        await bounded(one(each) for each in self._dialogues)
        for dialogue in self._dialogues:
            self._compare(dialogue, self._histories[self._ids.conversation(dialogue)])

    def _compare(self, dialogue: Dialogue, history: Sequence[conversation_pb2.Message]) -> None:
        outcome = self._outcome
        wanted = {
            self._ids.message(dialogue, index): turn for index, turn in enumerate(dialogue.turns)
        }
        spoken = [each for each in history if each.sender.role != actor_pb2.ROLE_SYSTEM]
        counts = Counter(each.client_msg_id for each in spoken)
        outcome.stored += sum(1 for key in wanted if counts[key])
        outcome.duplicates += sum(count - 1 for count in counts.values())
        for message in spoken:
            turn = wanted.get(message.client_msg_id)
            if turn is None or turn.text != message.content.text:
                outcome.duplicates += 1
        outcome.missing += sum(1 for key in wanted if not counts[key])
        order = [key for key in wanted if counts[key]]
        outcome.out_of_order += sum(
            1 for key, each in zip(order, spoken, strict=False) if key != each.client_msg_id
        )
        outcome.out_of_order += sum(1 for place, each in enumerate(history, 1) if each.seq != place)

    async def read_topic(self, reader: Reader) -> None:
        """Read the topic from where the reader began, and compare it with the histories."""
        expected = {
            each.message_id: each.sender.role != actor_pb2.ROLE_SYSTEM
            for history in self._histories.values()
            for each in history
        }
        task = self._progress.add_task("reading the topic back", total=len(expected))
        seen: Counter[str] = Counter()
        last: dict[str, int] = {}
        deadline = time.monotonic() + _PATIENCE
        while len(seen) < len(expected) and time.monotonic() < deadline:
            await self._take(reader, seen, last)
            self._progress.update(task, completed=len(seen))
        # Any record after all the expected ones would be a duplicate.
        await self._take(reader, seen, last)
        outcome = self._outcome
        outcome.on_kafka = sum(1 for event_id, turn in expected.items() if turn and seen[event_id])
        outcome.missing += sum(
            1 for event_id, turn in expected.items() if turn and not seen[event_id]
        )
        outcome.duplicates += sum(count - 1 for count in seen.values())
        outcome.duplicates += sum(1 for event_id in seen if event_id not in expected)

    async def _take(self, reader: Reader, seen: Counter[str], last: dict[str, int]) -> None:
        for record in await reader.read(5_000, 0.5):
            event = events.decode(topics.MESSAGES, record.value, record.headers)
            if event.tenant_id != self._ids.tenant:
                continue
            if event.event_id not in seen and event.sequence != last.get(event.subject, 0) + 1:
                self._outcome.out_of_order += 1
            last[event.subject] = max(last.get(event.subject, 0), event.sequence)
            seen[event.event_id] += 1


async def _history(stub: Any, conversation_id: str) -> list[conversation_pb2.Message]:
    found: list[conversation_pb2.Message] = []
    while True:
        try:
            answer = await stub.ListMessages(
                conversation_service_pb2.ListMessagesRequest(
                    conversation_id=conversation_id,
                    after_seq=found[-1].seq if found else 0,
                    page_size=1_000,
                )
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return found
            raise
        found += answer.messages
        if not answer.messages or found[-1].seq >= answer.head_seq:
            return found
