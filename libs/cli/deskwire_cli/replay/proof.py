"""The proof of a run: history over gRPC and the topic from Kafka, compared with the file."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import grpc
from rich.progress import Progress

from deskwire.chat.v1 import (
    conversation_pb2,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
)
from deskwire.common.v1 import actor_pb2
from deskwire_cli.recorded.bounded import bounded
from deskwire_cli.recorded.dialogues import Dialogue
from deskwire_cli.replay.outcome import Outcome
from deskwire_cli.replay.run_ids import RunIds
from deskwire_common import events, topics
from deskwire_common.kafka import Reader

_PATIENCE: Final = 60.0
"""Seconds until the topic must have everything."""


class Proof:
    """Reads one run back, and puts what is wrong into `outcome`."""

    def __init__(self, ids: RunIds, outcome: Outcome, progress: Progress) -> None:
        self._ids = ids
        self._outcome = outcome
        self._progress = progress
        self._expected: dict[str, bool] = {}
        """The ids of all messages in history, and whether each is a turn."""

    async def read_history(self, channel: grpc.aio.Channel, dialogues: Iterable[Dialogue]) -> None:
        """Read every conversation back, and compare it with its dialogue."""
        total = self._outcome.balance.dialogues_played
        task = self._progress.add_task("reading history back", total=total)
        stub = conversation_service_pb2_grpc.ConversationServiceStub(channel)

        async def one(dialogue: Dialogue) -> None:
            history = await _history(stub, self._ids.conversation(dialogue))
            self._compare(dialogue, history)
            for each in history:
                self._expected[each.message_id] = each.sender.role != actor_pb2.ROLE_SYSTEM
            self._progress.advance(task)

        await bounded(one, dialogues)

    def _compare(self, dialogue: Dialogue, history: Sequence[conversation_pb2.Message]) -> None:
        outcome = self._outcome
        wanted = {self._ids.message(dialogue, turn): turn for turn in dialogue.turns}
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
        expected = self._expected
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
