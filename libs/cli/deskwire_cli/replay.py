"""`deskwire replay FILE`: play recorded dialogues, then prove every turn stored, in order, once.

Each run has ids, a tenant and agents of its own, and goes through routing like everybody. A turn is sent when the other
side has received the one before. Afterwards history is read back over gRPC and the topic from Kafka, and both are
compared with the file.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import grpc
import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

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
from deskwire_cli.suite import Suite, load_suite
from deskwire_client import Client, Refused
from deskwire_common import events, topics
from deskwire_common.auth import KeySet, Role, TokenSigner
from deskwire_common.kafka import Reader
from deskwire_common.rpc import make_channel

KAFKA_UNPROVED: Final = 3
"""Exit code: all is stored, but the development broker can't prove the topic."""

_SIDES: Final = {"customer": "visitor", "visitor": "visitor", "user": "visitor", "agent": "agent"}
_PATIENCE: Final = 60.0
_READERS: Final = 16
_MAX_TEXT: Final = 8_000


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing said; `visitor` says by whom."""

    visitor: bool
    text: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One recorded conversation; begins with a turn of the visitor."""

    dialogue_id: str
    turns: tuple[Turn, ...]


def load(path: Path) -> list[Dialogue]:
    """Read JSON lines, plain or .gz. Raises Problem that names the line that can't be played."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
        dialogues = list(_parse(path, text.split("\n")))
    except OSError as error:
        raise Problem(f"can't read {path}: {error.strerror or error}") from None
    except (EOFError, zlib.error, UnicodeDecodeError) as error:
        raise Problem(f"can't read {path}: it is damaged ({error})") from None
    if not dialogues:
        raise Problem(f"{path} holds no dialogue")
    repeated = [
        each for each, count in Counter(d.dialogue_id for d in dialogues).items() if count > 1
    ]
    if repeated:
        raise Problem(f"{path}: the id {repeated[0]!r} is there more than once")
    return dialogues


def _parse(path: Path, lines: Iterable[str]) -> Iterator[Dialogue]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
            turns = tuple(
                Turn(_SIDES[each["from"]] == "visitor", str(each["text"]))
                for each in document["turns"]
            )
            dialogue = Dialogue(str(document["id"]), turns)
        except (ValueError, KeyError, TypeError) as error:
            raise Problem(
                f"{path}:{number} is no dialogue {{id, turns: [{{from: customer|agent, text}}]}}: "
                f"{type(error).__name__} {error}"
            ) from None
        if not turns or not turns[0].visitor:
            raise Problem(f"{path}:{number}: a dialogue begins with a turn of the customer")
        if not all(0 < len(turn.text) <= _MAX_TEXT for turn in turns):
            raise Problem(f"{path}:{number}: a turn has 1 to {_MAX_TEXT} characters")
        yield dialogue


def summary(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and max of seconds, in milliseconds."""
    ordered = sorted(values) or [0.0]

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 2)

    return {"p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "max": round(ordered[-1] * 1000, 2)}


@dataclass(slots=True)
class Outcome:
    """What a run found out; `report` is its --json form."""

    dialogues: int
    turns: int
    acked: int = 0
    stored: int = 0
    on_kafka: int | None = None
    missing: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    seconds: float = 0.0
    ack: list[float] = field(default_factory=list)
    delivery: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Nothing missing, twice or out of order."""
        return not (self.missing or self.duplicates or self.out_of_order)

    def report(self) -> dict[str, Any]:
        """The contract of `replay --json`."""
        return {
            "dialogues": self.dialogues,
            "turns": self.turns,
            "acked": self.acked,
            "stored": self.stored,
            "on_kafka": self.on_kafka,
            "missing": self.missing,
            "duplicates": self.duplicates,
            "out_of_order": self.out_of_order,
            "seconds": round(self.seconds, 3),
            "messages_per_second": round(self.acked / self.seconds, 1) if self.seconds else 0.0,
            "ack_ms": summary(self.ack),
            "delivery_ms": summary(self.delivery),
        }


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


class Replay:
    """One run against a suite."""

    def __init__(
        self, suite: Suite, dialogues: Sequence[Dialogue], *, pairs: int, rate: float
    ) -> None:
        self._suite = suite
        self._dialogues = dialogues
        self._pairs = min(pairs, len(dialogues))
        self._pace = _Pace(rate)
        self._run = uuid.uuid4()
        self._tenant = f"replay-{self._run.hex[:12]}"
        self._signer = TokenSigner(KeySet.load(suite.keys_file))
        self._agents: dict[str, Client] = {}
        self._owner: dict[str, Client] = {}
        self._arrivals: dict[str, asyncio.Future[float]] = {}
        self._setup = 0.0
        self.outcome = Outcome(len(dialogues), sum(len(each.turns) for each in dialogues))

    def _token(self, role: Role, subject: str) -> str:
        return self._signer.mint(tenant=self._tenant, role=role, subject=subject, ttl=86_400)

    def conversation_id(self, dialogue: Dialogue) -> str:
        """The conversation of a dialogue in this run."""
        return str(uuid.uuid5(self._run, dialogue.dialogue_id))

    @staticmethod
    def _message_id(dialogue: Dialogue, index: int) -> str:
        return f"{dialogue.dialogue_id[:48]}.{index}"

    # -------------------------------------------------------------------------------------- playing

    async def play(self, progress: Progress) -> Outcome:
        """Play everything, then prove it."""
        operator = self._token(Role.OPERATOR, "replay")
        reader = Reader(self._suite.kafka, [topics.MESSAGES.name], start="latest")
        if not self._suite.development_broker:
            await reader.start()
        channel = make_channel(self._suite.chat, token=lambda: operator)
        try:
            started = time.perf_counter()
            await self._connect_agents(channel, progress)
            await self._play_all(channel, progress)
            self.outcome.seconds = time.perf_counter() - started - self._setup
            await self._prove(channel, reader, progress)
        finally:
            await asyncio.gather(*(agent.close() for agent in self._agents.values()))
            await channel.close()
            await reader.close()
        return self.outcome

    async def _connect_agents(self, channel: grpc.aio.Channel, progress: Progress) -> None:
        started = time.perf_counter()
        task = progress.add_task("connecting agents", total=self._pairs)
        stub = agent_service_pb2_grpc.AgentServiceStub(channel)

        async def one(number: int) -> None:
            subject = f"agent-{number}"
            client = Client(
                self._suite.websocket,
                self._token(Role.AGENT, subject),
                on_push=lambda push: self._agent_sees(subject, push),
            )
            await client.connect()
            self._agents[subject] = client
            await stub.SetAgentStatus(
                agent_service_pb2.SetAgentStatusRequest(
                    request_id=f"{self._run}-{number}",
                    agent_id=subject,
                    status=agent_pb2.AGENT_STATUS_AVAILABLE,
                    capacity=1,
                )
            )
            progress.advance(task)

        await _bounded((one(number) for number in range(self._pairs)), _READERS)
        self._setup = time.perf_counter() - started

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

    async def _play_all(self, channel: grpc.aio.Channel, progress: Progress) -> None:
        task = progress.add_task("playing turns", total=self.outcome.turns)
        waiting = iter(self._dialogues)
        stub = conversation_service_pb2_grpc.ConversationServiceStub(channel)

        async def pair(number: int) -> None:
            token = self._token(Role.VISITOR, f"visitor-{number}")
            async with Client(self._suite.websocket, token, on_push=self._visitor_sees) as visitor:
                for dialogue in waiting:
                    try:
                        await self._play(dialogue, visitor, progress, task)
                    except (Refused, TimeoutError, OSError) as error:
                        self.outcome.failures.append(
                            f"{dialogue.dialogue_id}: {str(error) or type(error).__name__}"
                        )
                    await stub.CloseConversation(
                        conversation_service_pb2.CloseConversationRequest(
                            request_id=self.conversation_id(dialogue),
                            conversation_id=self.conversation_id(dialogue),
                        )
                    )

        await asyncio.gather(*(pair(number) for number in range(self._pairs)))

    async def _play(
        self, dialogue: Dialogue, visitor: Client, progress: Progress, task: Any
    ) -> None:
        conversation_id = self.conversation_id(dialogue)
        for index, turn in enumerate(dialogue.turns):
            await self._pace.wait()
            sender = visitor if turn.visitor else self._owner[conversation_id]
            key = self._message_id(dialogue, index)
            arrival: asyncio.Future[float] = asyncio.get_running_loop().create_future()
            self._arrivals[key] = arrival
            started = time.perf_counter()
            async with asyncio.timeout(_PATIENCE):
                await sender.send(conversation_id, turn.text, client_msg_id=key)
                self.outcome.ack.append(time.perf_counter() - started)
                self.outcome.acked += 1
                self.outcome.delivery.append(await arrival - started)
            del self._arrivals[key]
            progress.advance(task)
        self._owner.pop(conversation_id, None)

    # --------------------------------------------------------------------------------------- proving

    async def _prove(self, channel: grpc.aio.Channel, reader: Reader, progress: Progress) -> None:
        task = progress.add_task("reading history back", total=len(self._dialogues))
        stub = conversation_service_pb2_grpc.ConversationServiceStub(channel)
        histories: dict[str, list[conversation_pb2.Message]] = {}

        async def one(dialogue: Dialogue) -> None:
            histories[self.conversation_id(dialogue)] = await _history(
                stub, self.conversation_id(dialogue)
            )
            progress.advance(task)

        await _bounded((one(each) for each in self._dialogues), _READERS)
        for dialogue in self._dialogues:
            self._compare(dialogue, histories[self.conversation_id(dialogue)])
        if not self._suite.development_broker:
            await self._read_topic(reader, histories, progress)

    def _compare(self, dialogue: Dialogue, history: Sequence[conversation_pb2.Message]) -> None:
        outcome = self.outcome
        wanted = {
            self._message_id(dialogue, index): turn for index, turn in enumerate(dialogue.turns)
        }
        spoken = [each for each in history if each.sender.role != actor_pb2.ROLE_SYSTEM]
        counts = Counter(each.client_msg_id for each in spoken)
        outcome.stored += sum(1 for key in wanted if counts[key])
        outcome.duplicates += sum(count - 1 for count in counts.values())
        for each in spoken:
            turn = wanted.get(each.client_msg_id)
            if turn is None or turn.text != each.content.text:
                outcome.duplicates += 1
        outcome.missing += sum(1 for key in wanted if not counts[key])
        order = [key for key in wanted if counts[key]]
        outcome.out_of_order += sum(
            1 for key, each in zip(order, spoken, strict=False) if key != each.client_msg_id
        )
        outcome.out_of_order += sum(1 for place, each in enumerate(history, 1) if each.seq != place)

    async def _read_topic(
        self,
        reader: Reader,
        histories: dict[str, list[conversation_pb2.Message]],
        progress: Progress,
    ) -> None:
        expected = {
            each.message_id: each.sender.role != actor_pb2.ROLE_SYSTEM
            for history in histories.values()
            for each in history
        }
        task = progress.add_task("reading the topic back", total=len(expected))
        seen: Counter[str] = Counter()
        last: dict[str, int] = {}
        deadline = time.monotonic() + _PATIENCE
        while len(seen) < len(expected) and time.monotonic() < deadline:
            await self._take(reader, seen, last)
            progress.update(task, completed=len(seen))
        # What comes after all has come would be a duplicate.
        await self._take(reader, seen, last)
        outcome = self.outcome
        outcome.on_kafka = sum(1 for event_id, turn in expected.items() if turn and seen[event_id])
        outcome.missing += sum(
            1 for event_id, turn in expected.items() if turn and not seen[event_id]
        )
        outcome.duplicates += sum(count - 1 for count in seen.values())
        outcome.duplicates += sum(1 for event_id in seen if event_id not in expected)

    async def _take(self, reader: Reader, seen: Counter[str], last: dict[str, int]) -> None:
        for record in await reader.read(5_000, 0.5):
            event = events.decode(topics.MESSAGES, record.value, record.headers)
            if event.tenant_id != self._tenant:
                continue
            if event.event_id not in seen and event.sequence != last.get(event.subject, 0) + 1:
                self.outcome.out_of_order += 1
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


async def _bounded(work: Iterable[Any], at_once: int) -> None:
    gate = asyncio.Semaphore(at_once)

    async def one(each: Any) -> None:
        async with gate:
            await each

    await asyncio.gather(*(one(each) for each in work))


def show(outcome: Outcome) -> None:
    """Print the tables of a run."""
    report = outcome.report()
    console = Console()
    counts = Table(title="replay", show_header=False)
    for name, value in report.items():
        if not isinstance(value, dict):
            counts.add_row(
                name.replace("_", " "), "not provable here" if value is None else f"{value:,}"
            )
    console.print(counts)
    latency = Table(title="latency, ms")
    for column in ("", "p50", "p95", "p99", "max"):
        latency.add_column(column, justify="right")
    for name in ("ack_ms", "delivery_ms"):
        latency.add_row(
            name.removesuffix("_ms"), *(f"{value:,.2f}" for value in report[name].values())
        )
    console.print(latency)


def replay(
    file: Annotated[
        Path, typer.Argument(help="JSON lines {id, topics, turns: [{from, text}]}, plain or .gz.")
    ],
    pairs: Annotated[int, typer.Option(min=1, max=5_000, help="Visitors and agents at once.")] = 50,
    rate: Annotated[
        float, typer.Option(min=0, help="Turns a second at the most; 0: as fast as it goes.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")] = False,
    home: Annotated[
        Path | None, typer.Option(help="The suite's home; default $DESKWIRE_HOME.")
    ] = None,
) -> None:
    """Play recorded dialogues and prove that each turn is stored and published once, in order.

    Exit 0: it is so. 1: something is missing, twice or out of order. 3: all is stored, but the development broker
    can't prove the topic.
    """
    suite = load_suite(home)
    dialogues = load(file)
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        outcome = uvloop.run(Replay(suite, dialogues, pairs=pairs, rate=rate).play(progress))
    for failure in outcome.failures[:10]:
        print(f"failed: {failure}", file=sys.stderr)
    if as_json:
        print(json.dumps(outcome.report()))
    else:
        show(outcome)
    if not outcome.whole or outcome.failures:
        raise typer.Exit(1)
    if outcome.on_kafka is None:
        print(
            "stored once and in order; the development broker can't prove the topic",
            file=sys.stderr,
        )
        raise typer.Exit(KAFKA_UNPROVED)
