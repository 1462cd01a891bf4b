"""`make bench-hub`: what the event hub carries, and what an event and a delivery cost it.

With `--against FOLDER` (a git worktree of an earlier commit, with its stubs) the same is measured of its hub, in turn,
on the same Kafka and PostgreSQL.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import harness
import psutil
from confluent_kafka import Producer
from google.protobuf.empty_pb2 import Empty
from harness import say

from deskwire.chat.v1.conversation_pb2 import Content, Message
from deskwire.events.v1 import event_hub_service_pb2 as pb
from deskwire.events.v1 import event_hub_service_pb2_grpc
from deskwire.events.v1.chat_events_pb2 import MessageSent
from deskwire_common import events as codec
from deskwire_common import rpc, topics
from deskwire_common.auth import KeySet, Role, TokenSigner
from deskwire_common.clock import SystemClock
from deskwire_common.kafka import ensure_topics
from support import servers
from support.ports import free_port

SUBSCRIBERS: Final = 10
PARTITIONS: Final = 8
_SUBJECTS: Final = 1_000
_TEXT: Final = "Where is my parcel? It was to be here on Tuesday, and nobody has rung the bell."


@dataclass(frozen=True, slots=True)
class Hub:
    """A running hub."""

    process: psutil.Process
    target: str
    signer: TokenSigner

    def cpu(self) -> float:
        """CPU seconds that it has used."""
        used = self.process.cpu_times()
        return float(used.user + used.system)

    def size(self) -> dict[str, Any]:
        """Its memory and threads."""
        return {
            "memory_mb": round(self.process.memory_info().rss / 1e6),
            "threads": self.process.num_threads(),
        }

    def token(self, tenant: str) -> str:
        """A token of an operator."""
        return self.signer.mint(tenant=tenant, role=Role.OPERATOR, subject="bench", ttl=86_400)


@contextmanager
def hub(folder: Path, kafka: str, database: str, code: Path | None) -> Iterator[Hub]:
    """A hub of this code, or of a worktree's."""
    keys_file = folder / "keys.json"
    if not keys_file.exists():
        KeySet.generate().save(keys_file)
    keys = KeySet.load(keys_file)
    port = free_port()
    environment = {
        **os.environ,
        "DESKWIRE_GRPC_LISTEN": f"127.0.0.1:{port}",
        "DESKWIRE_KEYS_FILE": str(keys_file),
        "DESKWIRE_DATABASE_URL": database,
        "DESKWIRE_KAFKA": kafka,
        "DESKWIRE_LOG_LEVEL": "WARNING",
        "DESKWIRE_MAX_SUBSCRIPTIONS": "100000",
    }
    if code is not None:
        parts = ("protos/gen", "libs/common", "libs/wire", "services/events")
        environment["PYTHONPATH"] = os.pathsep.join(str(code / part) for part in parts)
    command = [sys.executable, "-m", "deskwire_events"]
    subprocess.run([*command, "migrate"], env=environment, check=True, stdout=sys.stderr)
    process = subprocess.Popen([*command, "serve"], env=environment, stdout=sys.stderr)
    signer = TokenSigner(keys, SystemClock(), subject="bench")
    try:
        target = f"127.0.0.1:{port}"
        asyncio.run(_is_there(target))
        yield Hub(psutil.Process(process.pid), target, signer)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


async def _is_there(target: str) -> None:
    async with asyncio.timeout(60):
        async with grpc.aio.insecure_channel(target) as channel:
            await channel.channel_ready()


# -- what is published ---------------------------------------------------------------------------


class Source(threading.Thread):
    """Puts events on a topic at a rate, each with the moment it was due; as another service's relay does."""

    def __init__(
        self, kafka: str, tenant: str, rate: float, seconds: float, most: float = math.inf
    ) -> None:
        super().__init__(daemon=True)
        self._producer = Producer(
            {"bootstrap.servers": kafka, "linger.ms": 2, "acks": "all", "enable.idempotence": True}
        )
        self._tenant = tenant
        self._rate = rate
        self._seconds = seconds
        self._most = most
        self.sent = 0

    def run(self) -> None:
        """Send, until the time is over, or there are enough."""
        began = time.time()
        while (passed := time.time() - began) < self._seconds and self.sent < self._most:
            due = min(int(passed * self._rate), self._most)
            while self.sent < due:
                self._send(began + self.sent / self._rate)
            self._producer.poll(0)
            time.sleep(0.002)
        self._producer.flush(30)

    def _send(self, moment: float) -> None:
        subject = f"s-{self.sent % _SUBJECTS}"
        event_id = f"01941f29-7c00-7a90-8c3b-{self.sent:012x}"
        value = json.dumps(
            {
                "event_type": "order_paid",
                "data": {"due": moment, "text": _TEXT},
                "trace_id": "0af7651916cd43dd8448eb211c80319c",
                "event_id": event_id,
                "tenant_id": self._tenant,
                "subject": subject,
                "sequence": self.sent // _SUBJECTS + 1,
                "occurred_at": "2026-11-28T09:30:00Z",
                "actor": {"role": "ROLE_OPERATOR", "subject": "olga"},
                "origin": "erp:main",
                "correlation_id": "",
            },
            separators=(",", ":"),
        )
        self._producer.produce(
            topics.EXTERNAL.name,
            value=value.encode(),
            key=f"{self._tenant}/{subject}".encode(),
            headers=headers(self._tenant, "order_paid", subject, event_id, "application/json"),
        )
        self.sent += 1


def headers(
    tenant: str, kind: str, subject: str, event_id: str, form: str
) -> list[tuple[str, bytes]]:
    """Those of an event, as a relay writes them."""
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", event_id.encode()),
        ("ce_type", kind.encode()),
        ("ce_source", b"erp:main"),
        ("ce_subject", subject.encode()),
        ("ce_time", b"2026-11-28T09:30:00Z"),
        ("ce_tenantid", tenant.encode()),
        ("content-type", form.encode()),
    ]


def fill(kafka: str, tenant: str, count: int) -> None:
    """Put messages on their topic, to be replayed."""
    producer = Producer(
        {"bootstrap.servers": kafka, "linger.ms": 20, "queue.buffering.max.messages": 1_000_000}
    )
    data = MessageSent(message=Message(content=Content(text=_TEXT), seq=1))
    event = codec.envelope(
        codec.DomainEvent(
            event_id="01941f29-7c00-7a90-8c3b-5f0d3c2b2005",
            event_type="message_sent",
            tenant_id=tenant,
            subject="c",
            sequence=1,
            occurred_at=1_700_000_000_000_000,
            trace_id="0" * 32,
            traceparent="",
            actor=codec.system_actor(),
            origin="deskwire",
            correlation_id="",
            data=data,
        )
    ).SerializeToString()
    for number in range(count):
        subject = f"c-{number % _SUBJECTS}"
        event_id = f"01941f29-7c00-7a90-8c3b-{number:012x}"
        producer.produce(
            topics.MESSAGES.name,
            value=event,
            key=subject.encode(),
            headers=headers(tenant, "message_sent", subject, event_id, "application/protobuf"),
        )
        if number % 10_000 == 0:
            producer.poll(0)
    producer.flush(60)


# -- who reads -----------------------------------------------------------------------------------


def read(plan: dict[str, Any]) -> None:
    """The process of the readers: a JSON line when all streams are open, one with what came when stdin ends."""
    print(json.dumps(asyncio.run(_read(plan))), flush=True)


async def _read(plan: dict[str, Any]) -> dict[str, Any]:
    counts = [0] * plan["streams"]
    latencies: list[float] = []
    open_streams = asyncio.Semaphore(0)
    enough = asyncio.Event()

    async def stream(number: int) -> None:
        async with grpc.aio.insecure_channel(
            plan["target"], options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            call = event_hub_service_pb2_grpc.EventHubServiceStub(channel).Subscribe(
                metadata=rpc.stream_metadata(plan["token"])
            )
            begin: dict[str, Any] = {"earliest": Empty()} if plan.get("until") else {}
            start = pb.SubscribeStart(
                event_types=plan["types"], json=plan["json"], credit=plan.get("credit", 0), **begin
            )
            await call.write(pb.SubscribeRequest(start=start))
            await call.read()
            open_streams.release()
            if number < plan["stalled"]:
                await enough.wait()
                return
            while not enough.is_set():
                answer = await call.read()
                if answer is grpc.aio.EOF:
                    return
                counts[number] += len(answer.events)
                if plan["json"] and answer.events:
                    # One of each answer, the oldest.
                    due = json.loads(answer.events[0].json)["data"]["due"]
                    latencies.append(time.time() - due)
                if plan.get("until") and counts[number] >= plan["until"]:
                    enough.set()

    tasks = [asyncio.create_task(stream(number)) for number in range(plan["streams"])]
    for _ in range(plan["streams"]):
        await open_streams.acquire()
    began = time.perf_counter()
    print("{}", flush=True)
    # Its end is the bench's word to stop.
    asyncio.get_running_loop().add_reader(sys.stdin, enough.set)
    await enough.wait()
    passed = time.perf_counter() - began
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    latencies.sort()
    return {
        "counts": counts,
        "seconds": passed,
        "p50_ms": round(_share(latencies, 0.5) * 1000, 1),
        "p99_ms": round(_share(latencies, 0.99) * 1000, 1),
    }


def _share(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0


@contextmanager
def readers(plan: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """The readers' process, with all streams open."""
    command = [sys.executable, __file__, "--read", json.dumps(plan)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What the readers say when they are told to end, or have."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    line = process.stdout.readline()
    found: dict[str, Any] = json.loads(line)
    return found


# -- what is measured ----------------------------------------------------------------------------


def fan_out(running: Hub, kafka: str, rate: float, seconds: float) -> dict[str, Any]:
    """Ten streams of one tenant, one of them stalled, at a rate of events."""
    tenant = f"bench-{uuid.uuid4().hex[:8]}"
    plan = {
        "target": running.target, "token": running.token(tenant), "streams": SUBSCRIBERS, "stalled": 1,
        "types": ["order_paid"], "json": True,
    }  # fmt: skip
    with readers(plan) as process, harness.Speedometer() as speed:
        source = Source(kafka, tenant, rate, seconds)
        before, began = running.cpu(), time.perf_counter()
        source.start()
        source.join()
        # What is still on its way comes, or shows as missing.
        time.sleep(1.0)
        passed = time.perf_counter() - began
        used = running.cpu() - before
        found = ended(process)
    delivered = sum(found["counts"])
    reading = found["counts"][1:]
    return {
        "asked": f"{rate * (SUBSCRIBERS - 1):,.0f} deliveries/s",
        "deliveries_a_second": round(delivered / seconds),
        "complete": "yes" if min(reading) == source.sent else f"{min(reading)} of {source.sent}",
        "p50_ms": found["p50_ms"],
        "p99_ms": found["p99_ms"],
        "cpu_us_a_delivery": round(used / max(1, delivered) * 1e6, 1),
        "cpu_us_an_event": round(used / max(1, source.sent) * 1e6),
        "cores": round(used / passed, 2),
        **running.size(),
        "million_additions_ms": speed.million_additions_ms,
    }


def latency(running: Hub, kafka: str, rate: float, seconds: float) -> dict[str, Any]:
    """One stream, at a rate of events."""
    tenant = f"bench-{uuid.uuid4().hex[:8]}"
    plan = {
        "target": running.target, "token": running.token(tenant), "streams": 1, "stalled": 0,
        "types": ["order_paid"], "json": True,
    }  # fmt: skip
    with readers(plan) as process:
        source = Source(kafka, tenant, rate, seconds)
        before = running.cpu()
        source.start()
        source.join()
        used = running.cpu() - before
        found = ended(process)
    return {
        "latency_p50_ms": found["p50_ms"],
        "latency_p99_ms": found["p99_ms"],
        "latency_cpu_us": round(used / max(1, source.sent) * 1e6),
    }


def replay(running: Hub, tenant: str, count: int) -> dict[str, Any]:
    """One stream that reads all messages of a tenant from the first, as protobuf."""
    plan = {
        "target": running.target, "token": running.token(tenant), "streams": 1, "stalled": 0,
        "types": ["message_sent"], "json": False, "until": count,
    }  # fmt: skip
    before = running.cpu()
    with readers(plan) as process:
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
    used = running.cpu() - before
    return {
        "replayed_a_second": round(found["counts"][0] / found["seconds"]),
        "replay_cpu_us": round(used / count * 1e6, 1),
    }


async def publish(running: Hub, size: int, callers: int, seconds: float) -> dict[str, float]:
    """Publish by RPC: events a second, by so many callers with so many events in a call."""
    tenant = f"bench-{uuid.uuid4().hex[:8]}"
    token = running.token(tenant)
    done = 0
    until = time.perf_counter() + seconds

    async def work(number: int) -> None:
        nonlocal done
        async with rpc.make_channel(running.target, token=lambda: token) as channel:
            stub: Any = event_hub_service_pb2_grpc.EventHubServiceStub(channel)
            while time.perf_counter() < until:
                made = [
                    pb.ExternalEvent(
                        event_type="order_paid",
                        subject=f"{number}-{each}",
                        data_json=json.dumps({"text": _TEXT, "n": each}),
                    )
                    for each in range(size)
                ]
                await stub.Publish(pb.PublishRequest(request_id=uuid.uuid4().hex, events=made))
                done += size

    before = running.cpu()
    began = time.perf_counter()
    await asyncio.gather(*(work(number) for number in range(callers)))
    passed = time.perf_counter() - began
    return {"rate": round(done / passed), "us": round((running.cpu() - before) / done * 1e6)}


async def takeover(one: Hub, other: Hub, kafka: str) -> float:
    """Seconds without a delivery to a named subscription when a hub is killed; its reader comes back by itself."""
    tenant = f"bench-{uuid.uuid4().hex[:8]}"
    token = one.token(tenant)
    arrivals: list[float] = []
    reading = asyncio.create_task(read_on([one, other], token, arrivals))
    async with rpc.make_channel(one.target, token=lambda: token) as channel:
        stub: Any = event_hub_service_pb2_grpc.EventHubServiceStub(channel)
        wanted = {"subscription_id": "bench", "filter": {"event_types": ["order_paid"]}}
        await stub.CreateSubscription(
            pb.CreateSubscriptionRequest(request_id="bench", subscription=wanted)
        )
    Source(kafka, tenant, 100, 25).start()
    await asyncio.sleep(8)
    one.process.send_signal(signal.SIGKILL)
    killed = time.perf_counter()
    await asyncio.sleep(15)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    around = [each for each in arrivals if each > killed - 2]
    return max(later - earlier for earlier, later in itertools.pairwise(around))


async def read_on(hubs: Sequence[Hub], token: str, arrivals: list[float]) -> None:
    """Read the subscription for ever, through whichever hub answers, and acknowledge all."""
    for number in itertools.count():
        try:
            async with grpc.aio.insecure_channel(
                hubs[number % 2].target, options=[("grpc.use_local_subchannel_pool", 1)]
            ) as channel:
                call = event_hub_service_pb2_grpc.EventHubServiceStub(channel).Subscribe(
                    metadata=rpc.stream_metadata(token)
                )
                start = pb.SubscribeStart(subscription_id="bench")
                await call.write(pb.SubscribeRequest(start=start))
                while (answer := await call.read()) is not grpc.aio.EOF:
                    if answer.events:
                        arrivals.append(time.perf_counter())
                        done = [each.delivery for each in answer.events]
                        ack = pb.SubscribeAck(deliveries=done)
                        await call.write(pb.SubscribeRequest(ack=ack))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await asyncio.sleep(0.1)


def measure(
    running: Hub, kafka: str, options: argparse.Namespace, filled: str
) -> list[dict[str, Any]]:
    """All of it, one row per rate of the fan-out."""
    rows = []
    for rate in options.rates:
        say(f"{rate} events a second to {SUBSCRIBERS} streams")
        rows.append(fan_out(running, kafka, rate, options.seconds))
    say("latency, replay, Publish")
    rows[0] |= latency(running, kafka, 1_000, options.seconds)
    rows[0] |= replay(running, filled, options.replay)
    batches = asyncio.run(publish(running, 50, 4, options.seconds))
    single = asyncio.run(publish(running, 1, 16, options.seconds))
    rows[0] |= {
        "published_a_second_by_50": batches["rate"],
        "publish_cpu_us_by_50": batches["us"],
        "published_a_second_by_1": single["rate"],
        "publish_cpu_us_by_1": single["us"],
    }
    for row in rows[1:]:
        row |= {name: "–" for name in rows[0] if name not in row}
    return rows


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[250, 1_000, 2_300])
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--replay", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=3, help="hubs that are killed")
    parser.add_argument("--against", type=Path, help="a worktree of an earlier commit")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read(json.loads(options.read))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deskwire-bench-")))
        folder.chmod(0o711)
        say("starting PostgreSQL and Kafka")
        kafka = stack.enter_context(servers.kafka_broker(folder))
        postgres = stack.enter_context(servers.postgres_server(folder, shared_buffers="128MB"))
        asyncio.run(ensure_topics(kafka))
        filled = f"bench-{uuid.uuid4().hex[:8]}"
        fill(kafka, filled, options.replay)
        for name, code in (("before", options.against), ("now", None)):
            if name == "before" and code is None:
                continue
            say(f"the hub: {name}")
            url = postgres.url(f"bench_{name}")
            with hub(folder, kafka, url, code) as running:
                rows = measure(running, kafka, options, filled)
            gaps = []
            for _ in range(options.kills if name == "now" else 0):
                # Either may have the subscription's slot: the one that has it isn't known from outside.
                with hub(folder, kafka, url, code) as one, hub(folder, kafka, url, code) as other:
                    gaps.append(round(asyncio.run(takeover(one, other, kafka)), 1))
            best = max(rows, key=lambda row: row["deliveries_a_second"])
            harness.record(
                "hub" if name == "now" else "hub-before",
                figures={
                    "deliveries_a_second": best["deliveries_a_second"],
                    "seconds_without_deliveries_after_kill": gaps,
                    "median_cpu_us_a_delivery": statistics.median(
                        row["cpu_us_a_delivery"] for row in rows
                    ),
                },
                parameters={
                    "streams": SUBSCRIBERS,
                    "seconds": options.seconds,
                    "rates": options.rates,
                    "replay": options.replay,
                },
                rows=rows,
            )


if __name__ == "__main__":
    main()
