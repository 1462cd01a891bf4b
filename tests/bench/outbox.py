"""`make bench-outbox`: how long a committed event takes to Kafka, and how fast a relay empties an outbox."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import harness
import psutil
import sqlalchemy as sa
from harness import Speedometer, say

from deskwire_common import db as dbs
from deskwire_common import events, topics
from deskwire_common.clock import SystemClock
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.ids import RandomIds
from deskwire_common.kafka import Producer, Reader, ensure_topics
from deskwire_common.logging import setup_logging
from deskwire_common.outbox import Outbox, OutboxRelay
from deskwire_common.ownership import Owner
from deskwire_common.topics import Topic
from support import servers
from support.outbox import METADATA, SUBJECTS, event

#: Aggregates that change.
COUNT: Final = 500
#: Bytes of each event's data.
TEXT: Final = "x" * 300
DATABASES: Final = ("postgresql", "mariadb", "sqlite")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a process of the bench does; it travels as JSON."""

    url: str
    kafka: str
    topic: str
    relay: bool
    """Whether this process has the relay."""
    rate: int
    """Changes a second that it commits, each in a transaction of its own."""
    seconds: float

    @property
    def made_topic(self) -> Topic:
        return replace(topics.EXTERNAL, name=self.topic, partitions=4)


# --------------------------------------------------------------------------------------- a process


async def work(plan: Plan) -> None:
    """Relay, or commit, or both; prints "ready", and at the end when each event was committed."""
    setup_logging("bench", "ERROR")  # stdout is for the parent
    db = await Database.open(plan.url)
    outbox = Outbox(dbs.metadata())
    ending = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
    tasks: list[asyncio.Task[None]] = []
    if plan.relay:
        producer = Producer(plan.kafka, "bench", strict=True)
        await producer.start()
        relay = OutboxRelay(db, outbox, producer)
        owner = Owner(db, SystemClock(), RandomIds().uuid7())
        owner.employ(relay.KIND, relay.work)
        await owner.start("bench", "")
        tasks.append(asyncio.create_task(owner.run()))
    committed: dict[str, float] = {}
    print("ready", flush=True)
    if plan.rate:
        await write(plan, db, outbox, committed)
        print(json.dumps(committed), flush=True)
    await ending
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await db.close()


async def write(plan: Plan, db: Database, outbox: Outbox, committed: dict[str, float]) -> None:
    """Commit at the plan's rate; a stalled writer catches up."""
    topic = plan.made_topic
    limit = asyncio.Semaphore(16)
    begin = time.monotonic()

    async def change(number: int) -> None:
        name = f"s{number % COUNT}"

        async def once(uow: UnitOfWork) -> str:
            where = SUBJECTS.c.name == name
            await uow.execute(
                sa.update(SUBJECTS).where(where).values(version=SUBJECTS.c.version + 1)
            )
            version = (await uow.execute(sa.select(SUBJECTS.c.version).where(where))).scalar_one()
            made = event(topic, name, version, TEXT)
            await outbox.add(uow, [made])
            return made.event_id

        async with limit:
            event_id = await db.run(once)
            committed[event_id] = time.time()

    async with asyncio.TaskGroup() as group:
        for number in range(int(plan.rate * plan.seconds)):
            delay = begin + number / plan.rate - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            group.create_task(change(number))


@contextmanager
def process(plan: Plan) -> Iterator[subprocess.Popen[str]]:
    """A process of the bench, once it is ready."""
    command = [sys.executable, __file__, "--plan", json.dumps(asdict(plan))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            assert child.stdin is not None
            child.stdin.close()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()


def cpu(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


# ------------------------------------------------------------------------------------------- rows


async def prepared(url: str, kafka: str) -> str:
    """Make the tables, the subjects and a topic; the topic's name."""
    if not url.startswith("sqlite"):
        await harness.refuse_what_is_not_durable(url)
    db = await Database.open(url)
    async with db.engine.begin() as connection:
        await connection.run_sync(METADATA.drop_all)
        await connection.run_sync(METADATA.create_all)
        rows = [{"name": f"s{number}", "version": 0} for number in range(COUNT)]
        await connection.execute(sa.insert(SUBJECTS), rows)
    await db.close()
    name = f"bench-{uuid.uuid4().hex[:12]}"
    await ensure_topics(kafka, [replace(topics.EXTERNAL, name=name, partitions=4)])
    return name


async def latency(plan: Plan, *, apart: bool) -> dict[str, Any]:
    """From commit to a reader of Kafka, at a steady rate; `apart`: another process has the relay."""
    seen: dict[str, float] = {}
    wanted = int(plan.rate * plan.seconds)
    reader = Reader(plan.kafka, [plan.topic])
    await reader.start()
    with ExitStack() as stack, Speedometer() as speedometer:
        relay = stack.enter_context(process(replace(plan, rate=plan.rate * (not apart))))
        writer = stack.enter_context(process(replace(plan, relay=False))) if apart else relay
        began = cpu(relay.pid)
        assert writer.stdout is not None
        committing = asyncio.create_task(asyncio.to_thread(writer.stdout.readline))
        repeated = 0
        async with asyncio.timeout(plan.seconds * 5 + 60):
            while len(seen) < wanted:
                records = await reader.read(timeout=0.05)
                now = time.time()
                for record in records:
                    name = (events.header(record.headers, "ce_id") or b"").decode()
                    repeated += name in seen
                    seen.setdefault(name, now)
        used = cpu(relay.pid) - began
        committed: dict[str, float] = json.loads(await committing)
    await reader.close()
    if committed.keys() != seen.keys() or repeated:
        raise AssertionError(f"{len(committed)} committed, {len(seen)} read, {repeated} twice")
    times = sorted((seen[name] - at) * 1000 for name, at in committed.items())
    span = max(committed.values()) - min(committed.values())
    return {
        "what": "the relay of another process" if apart else "the relay of the same process",
        "rows_a_second": round(wanted / span, 1),
        "p50_ms": round(statistics.median(times), 1),
        "p99_ms": round(times[int(len(times) * 0.99)], 1),
        "max_ms": round(times[-1], 1),
        # The writer's own CPU is in it where both are one process.
        "cpu_us_a_row": round(used / wanted * 1e6) if apart else "",
        "million_additions_ms": speedometer.million_additions_ms,
        "slowest_sync_ms": speedometer.slowest_sync_ms,
    }


async def throughput(plan: Plan, rows: int) -> dict[str, Any]:
    """How fast a relay empties an outbox that has filled."""
    db = await Database.open(plan.url)
    outbox, topic = Outbox(dbs.metadata()), plan.made_topic
    for start in range(0, rows, 2_000):
        made = [
            event(topic, f"s{number % COUNT}", number // COUNT + 1, TEXT)
            for number in range(start, min(start + 2_000, rows))
        ]
        async with db.transaction() as uow:
            await outbox.add(uow, made)
            await uow.commit()
    with Speedometer() as speedometer:
        started = time.monotonic()
        with process(replace(plan, rate=0)) as relay:
            loaded = cpu(relay.pid)
            while (left := (await outbox.pending(db))[0]) == rows:
                await asyncio.sleep(0.005)
            began, first = time.monotonic(), left
            while (await outbox.pending(db))[0]:
                await asyncio.sleep(0.02)
            seconds, used = time.monotonic() - began, cpu(relay.pid) - loaded
            memory = psutil.Process(relay.pid).memory_info().rss / 1e6
        say(f"the first rows were taken after {began - started:.2f} s")
    await db.close()
    return {
        "what": "a filled outbox",
        "rows_a_second": round(first / seconds),
        "p50_ms": "",
        "p99_ms": "",
        "max_ms": "",
        "cpu_us_a_row": round(used / rows * 1e6),
        "million_additions_ms": speedometer.million_additions_ms,
        "slowest_sync_ms": speedometer.slowest_sync_ms,
        "memory_mb": round(memory),
    }


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    if kind == "postgresql":
        with servers.postgres_server(folder, shared_buffers="128MB", max_wal_size="1GB") as server:
            harness.make_wal_files(server)
            yield server.url("bench")
    elif kind == "mariadb":
        with servers.mariadb_server(folder) as server:
            yield server.url("bench")
    else:
        yield f"sqlite:///{folder / 'bench.db'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    parser.add_argument("--databases", nargs="+", default=["postgresql"], choices=DATABASES)
    parser.add_argument("--rate", type=int, default=1_000, help="changes a second")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rows", type=int, default=60_000, help="of the filled outbox")
    options = parser.parse_args()
    if options.plan:
        asyncio.run(work(Plan(**json.loads(options.plan))))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="deskwire-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o711)
        kafka = stack.enter_context(servers.kafka_broker(folder))
        for kind in options.databases:
            with database(kind, folder) as url:
                rows += asyncio.run(measured(kind, url, kafka, options))
    harness.record(
        "outbox",
        figures={f"{row['database']}, {row['what']}": row["rows_a_second"] for row in rows},
        parameters={name: value for name, value in vars(options).items() if name != "plan"},
        rows=rows,
    )


async def measured(
    kind: str, url: str, kafka: str, options: argparse.Namespace
) -> Sequence[dict[str, Any]]:
    """The rows of one database."""

    async def plan() -> Plan:
        topic = await prepared(url, kafka)
        return Plan(url, kafka, topic, True, options.rate, options.seconds)

    found = []
    for apart in (False, True):
        say(
            f"{kind}: {options.rate} changes a second, {'another' if apart else 'the same'} process"
        )
        found.append(await latency(await plan(), apart=apart))
    say(f"{kind}: a filled outbox of {options.rows} rows")
    found.append(await throughput(await plan(), options.rows))
    for row in found:
        row.setdefault("memory_mb", "")
    return [{"database": kind, **row} for row in found]


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
