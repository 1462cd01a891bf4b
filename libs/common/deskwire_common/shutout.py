"""Who is disabled, for services that don't own tenants and agents: they hear it on Kafka and remember it.

Chat owns tenants and agents and publishes each `tenant_disabled`, `agent_enabled` …. A service reads those topics from
where it stopped, with a reader of its own in each process, and keeps in its own database who is disabled, as of which
event, and the places up to which it has read. It serves when it has read all that was there at its start. When Kafka is
away later, it goes on with what it knows: who was shut out stays shut out, and nobody else is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import sqlalchemy as sa

from deskwire_common import db as dbs
from deskwire_common import events, topics
from deskwire_common.auth import Admission, AgentKey
from deskwire_common.db import AWAY, Database, UnitOfWork
from deskwire_common.errors import InvalidArgument, Unavailable
from deskwire_common.kafka import Place, Reader, Record, cluster_id, ensure_topics
from deskwire_common.lifecycle import Runtime
from deskwire_common.logging import get_logger
from deskwire_common.loops import Backoff

_TOPICS: Final = (topics.ACCESS, topics.AGENTS)
_DISABLED: Final = {
    "tenant_disabled": True,
    "tenant_enabled": False,
    "agent_disabled": True,
    "agent_enabled": False,
}
_RECORDS: Final = 500
_READ_SECONDS: Final = 0.2
_CATCH_UP_SECONDS: Final = 60.0
_SAVE_SECONDS: Final = 60.0
"""How often places are saved while nobody is disabled or enabled."""


@dataclass(frozen=True, slots=True)
class Fact:
    """Whether a tenant (agent_id is "") or an agent is disabled, as of the event with this sequence."""

    tenant_id: str
    agent_id: str
    sequence: int
    disabled: bool


def shut_out_table(metadata: sa.MetaData) -> sa.Table:
    """The table `shut_out`: all who were disabled once, with the last that is known of them."""
    return sa.Table(
        "shut_out",
        metadata,
        sa.Column("tenant_id", dbs.Name, primary_key=True),
        sa.Column("agent_id", dbs.Subject, primary_key=True),
        sa.Column("sequence", dbs.UInt32, nullable=False),
        sa.Column("disabled", sa.Boolean, nullable=False),
    )


def shut_out_places_table(metadata: sa.MetaData) -> sa.Table:
    """The table `shut_out_places`: the next offset of each partition of a cluster."""
    return sa.Table(
        "shut_out_places",
        metadata,
        sa.Column("cluster", dbs.ascii_text(64), primary_key=True),
        sa.Column("topic", dbs.Name, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("next", sa.BigInteger, nullable=False),
    )


async def follow(runtime: Runtime[Any], db: Database) -> Admission:
    """Return who is disabled, complete as of now; a task of the runtime keeps it so.

    Raises Unavailable when the database or Kafka doesn't answer, or it takes longer than a minute.
    """
    kafka: str = runtime.settings.kafka
    shut_out = ShutOut(db, kafka)
    runtime.stack.push_async_callback(shut_out.close)
    await shut_out.start()
    runtime.spawn("shut-out", shut_out.run)
    return shut_out.admission


class ShutOut:
    """Keeps `admission` as Kafka says it."""

    def __init__(self, db: Database, kafka: str) -> None:
        self.admission = Admission()
        self._db = db
        self._kafka = kafka
        # A MetaData of their own: one process may build a service twice.
        metadata = dbs.metadata()
        self._facts, self._places = shut_out_table(metadata), shut_out_places_table(metadata)
        self._known: dict[AgentKey, Fact] = {}
        self._unsaved: dict[AgentKey, Fact] = {}
        self._saved_at = 0.0
        self._cluster = ""
        self._reader: Reader | None = None

    async def start(self) -> None:
        """Read what is remembered, and on Kafka what came since. Raises Unavailable."""
        async with self._db.read() as c:
            rows = (await c.execute(sa.select(self._facts))).mappings().all()
        self._take(Fact(**row) for row in rows)
        self._unsaved.clear()
        try:
            async with asyncio.timeout(_CATCH_UP_SECONDS):
                await self._open()
                await self._catch_up()
        except TimeoutError:
            raise Unavailable("Kafka is too slow in saying who is disabled") from None

    async def run(self) -> None:
        """Follow Kafka until cancelled; outlasts Kafka and a database that are away."""
        backoff = Backoff(0.5, 10.0)
        while True:
            try:
                if self._reader is None:
                    await self._open()
                await self._round()
                backoff.reset()
            except AWAY as error:
                get_logger().warning("shut_out_not_followed", error=str(error))
                await self.close()
                await backoff.pause()

    async def close(self) -> None:
        """Stop reading."""
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.close()

    async def _open(self) -> None:
        """Read from the saved places on, or from the oldest record where a place isn't kept any more."""
        self._cluster = await cluster_id(self._kafka)
        # Chat's topics: on a new cluster chat may be yet to start.
        await ensure_topics(self._kafka, _TOPICS)
        async with self._db.read() as c:
            query = sa.select(self._places).where(self._places.c.cluster == self._cluster)
            rows = (await c.execute(query)).mappings().all()
        places = {(row["topic"], row["number"]): int(row["next"]) for row in rows}
        names = [topic.name for topic in _TOPICS]
        while True:
            self._reader = reader = Reader(self._kafka, names, start=places, idle_ms=500)
            await reader.start()
            kept = _kept(reader)
            if kept == reader.positions:
                return
            # What lies between is gone, with who was disabled there and not known here.
            get_logger().warning("shut_out_places_gone", places=len(places))
            places = kept
            await self.close()

    async def _catch_up(self) -> None:
        reader = self._reader
        while reader is not None and any(
            reader.positions[place] < end for place, end in reader.ends.items()
        ):
            await self._round()

    async def _round(self) -> None:
        reader = self._reader
        if reader is None:
            raise Unavailable("the reader is closed")
        records = await reader.read(_RECORDS, _READ_SECONDS)
        self._take(fact for fact in map(_fact, records) if fact is not None)
        now = asyncio.get_running_loop().time()
        if self._unsaved or (records and now - self._saved_at >= _SAVE_SECONDS):
            for fact in self._unsaved.values():
                get_logger().info("shut_out", **asdict(fact))
            await self._save(reader.positions)
            self._saved_at = now

    def _take(self, facts: Iterable[Fact]) -> None:
        """Learn what is newer than what is known."""
        fresh = False
        for fact in facts:
            key = fact.tenant_id, fact.agent_id
            known = self._known.get(key)
            if known is None or fact.sequence > known.sequence:
                self._known[key] = self._unsaved[key] = fact
                fresh = True
        if not fresh:
            return
        shut = [key for key, fact in self._known.items() if fact.disabled]
        self.admission.update(
            [tenant for tenant, agent in shut if not agent], [key for key in shut if key[1]]
        )

    async def _save(self, positions: Mapping[Place, int]) -> None:
        saved, places = dict(self._unsaved), dict(positions)
        async with self._db.transaction() as uow:
            for fact in saved.values():
                await self._save_fact(uow, fact)
            rows = [
                {"cluster": self._cluster, "topic": topic, "number": number, "next": place}
                for (topic, number), place in sorted(places.items())
            ]
            await dbs.upsert(uow, self._places, rows, ["cluster", "topic", "number"])
            await uow.commit()
        self._unsaved = {key: fact for key, fact in self._unsaved.items() if saved.get(key) != fact}

    async def _save_fact(self, uow: UnitOfWork, fact: Fact) -> None:
        """Write it, unless another process of the service wrote a newer one."""
        table = self._facts
        if not await dbs.insert_if_absent(uow, table, asdict(fact)):
            await uow.execute(
                sa.update(table)
                .where(
                    table.c.tenant_id == fact.tenant_id,
                    table.c.agent_id == fact.agent_id,
                    table.c.sequence < fact.sequence,
                )
                .values(sequence=fact.sequence, disabled=fact.disabled)
            )


def _kept(reader: Reader) -> dict[Place, int]:
    """The reader's positions, or the oldest records where those aren't kept."""
    return {
        place: at if reader.oldest[place] <= at <= reader.ends[place] else reader.oldest[place]
        for place, at in reader.positions.items()
    }


def _fact(record: Record) -> Fact | None:
    """What a record says; None: nothing about who is disabled. The header tells without decoding the value."""
    kind = (events.header(record.headers, "ce_type") or b"").decode("ascii", "replace")
    disabled = _DISABLED.get(kind)
    if disabled is None:
        return None
    try:
        event = events.decode(record.topic, record.value, record.headers)
    except InvalidArgument as error:
        get_logger().warning("shut_out_unreadable", topic=record.topic, error=error.message)
        return None
    agent = event.subject.removeprefix(f"{event.tenant_id}/") if kind.startswith("agent") else ""
    return Fact(event.tenant_id, agent, event.sequence, disabled)
