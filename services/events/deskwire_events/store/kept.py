"""Records that are kept outside of Kafka: parked ones, which wait for their next try, and dead letters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_common import db
from deskwire_common.db import UnitOfWork
from deskwire_common.kafka import Headers
from deskwire_events.domain import Delivery, Outcome
from deskwire_events.store.tables import dead, parked

Place: TypeAlias = tuple[str, int]
LaneKey: TypeAlias = tuple[str, bytes]
_KEYS = ("incarnation", "topic", "partition", "position")


@dataclass(frozen=True, slots=True)
class Kept:
    """A record that is kept; `timestamp` in milliseconds."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    headers: Headers
    timestamp: int
    event_id: str
    event_type: str

    def columns(self) -> dict[str, Any]:
        """It as columns."""
        return {
            "topic": self.topic,
            "partition": self.partition,
            "position": self.offset,
            "key": self.key,
            "value": self.value,
            # Latin-1 has a character for every byte.
            "headers": json.dumps(
                [[name, text.decode("latin-1")] for name, text in self.headers]
            ).encode(),
            "timestamp": self.timestamp,
            "event_id": self.event_id,
            "event_type": self.event_type,
        }


@dataclass(frozen=True, slots=True)
class Parked:
    """A record that waits; `since` and `due` in microseconds."""

    incarnation: str
    record: Kept
    attempts: int
    refusals: int
    since: int
    due: int
    detail: str


@dataclass(frozen=True, slots=True)
class Dead:
    """A dead letter: the end of its way, and the record."""

    incarnation: str
    record: Kept
    end: Delivery


def lane_of(key: LaneKey) -> str:
    """The name of a key's lane: a digest, as keys have any bytes and any length."""
    return hashlib.blake2b(key[0].encode() + b"\0" + key[1], digest_size=16).hexdigest()


# -- parked ------------------------------------------------------------------------------------


async def park(uow: UnitOfWork, rows: Iterable[Parked]) -> None:
    """Write records that wait; one that is there is written anew."""
    values = [
        {
            "incarnation": each.incarnation,
            "lane": lane_of((each.record.topic, each.record.key)),
            **each.record.columns(),
            "attempts": each.attempts,
            "refusals": each.refusals,
            "since": each.since,
            "due": each.due,
            "detail": each.detail,
        }
        for each in rows
    ]
    await db.upsert(uow, parked, values, _KEYS)


async def unpark(uow: UnitOfWork, incarnation: str, ids: Collection[tuple[str, int, int]]) -> None:
    """Remove records that wait no more, by topic, partition and offset."""
    if not ids:
        return
    c = parked.c
    statement = sa.delete(parked).where(
        c.incarnation == sa.bindparam("i"),
        c.topic == sa.bindparam("t"),
        c.partition == sa.bindparam("p"),
        c.position == sa.bindparam("o"),
    )
    rows = [{"i": incarnation, "t": t, "p": p, "o": o} for t, p, o in sorted(ids)]
    await uow.execute(statement, rows)


async def forget_parked(uow: UnitOfWork, incarnation: str) -> None:
    """Remove all records of a subscription that wait."""
    await uow.execute(sa.delete(parked).where(parked.c.incarnation == incarnation))


async def lanes(
    connection: AsyncConnection, incarnations: Sequence[str]
) -> dict[str, list[tuple[LaneKey, int, int]]]:
    """Each key of subscriptions that waits: how many records it has, and when its first one is due (microseconds)."""
    c = parked.c
    query = (
        sa.select(c.incarnation, c.lane, c.topic, c.key, c.due)
        .where(c.incarnation.in_(incarnations))
        .order_by(c.incarnation, c.lane, c.partition, c.position)
    )
    found: dict[tuple[str, str], tuple[LaneKey, int, int]] = {}
    for incarnation, lane, topic, key, due in await connection.execute(query):
        first = found.get((incarnation, lane))
        found[incarnation, lane] = (
            ((topic, bytes(key)), 1, due) if first is None else (first[0], first[1] + 1, first[2])
        )
    result: dict[str, list[tuple[LaneKey, int, int]]] = {}
    for (incarnation, _), each in found.items():
        result.setdefault(incarnation, []).append(each)
    return result


async def of_lane(
    connection: AsyncConnection, incarnation: str, key: LaneKey, limit: int
) -> list[Parked]:
    """The first records of a key that wait, in order."""
    c = parked.c
    query = (
        sa.select(parked)
        .where(c.incarnation == incarnation, c.lane == lane_of(key))
        .order_by(c.partition, c.position)
        .limit(limit)
    )
    return [
        Parked(
            incarnation=incarnation,
            record=_record(row),
            attempts=row["attempts"],
            refusals=row["refusals"],
            since=row["since"],
            due=row["due"],
            detail=row["detail"],
        )
        for row in (await connection.execute(query)).mappings()
    ]


async def offsets(
    connection: AsyncConnection, places: Mapping[str, Mapping[Place, int]]
) -> dict[str, dict[Place, set[int]]]:
    """What is parked or dead at or above the places of subscriptions: reading again from there passes over it."""
    found: dict[str, dict[Place, set[int]]] = {}
    for table in (parked, dead):
        c = table.c
        query = sa.select(c.incarnation, c.topic, c.partition, c.position)
        query = query.where(c.incarnation.in_(list(places)))
        for incarnation, topic, partition, offset in await connection.execute(query):
            if offset >= places[incarnation].get((topic, partition), 0):
                mine = found.setdefault(incarnation, {})
                mine.setdefault((topic, partition), set()).add(offset)
    return found


async def count_parked(connection: AsyncConnection, incarnation: str) -> int:
    """How many records of a subscription wait."""
    query = sa.select(sa.func.count()).where(parked.c.incarnation == incarnation)
    return int((await connection.execute(query)).scalar_one())


# -- dead --------------------------------------------------------------------------------------


async def bury(uow: UnitOfWork, rows: Sequence[Dead]) -> None:
    """Write dead letters; one that is there is written anew, under its number."""
    values = [
        {
            "incarnation": each.incarnation,
            **each.record.columns(),
            "outcome": int(each.end.outcome),
            "detail": each.end.detail,
            "attempts": each.end.attempts,
            "time": each.end.time,
            "trace_id": each.end.trace_id,
        }
        for each in rows
    ]
    await db.upsert(uow, dead, values, _KEYS)


async def letters(
    connection: AsyncConnection, incarnation: str, *, below: int | None, limit: int
) -> list[tuple[Delivery, Kept]]:
    """Up to `limit` dead letters with a number below `below` (None: from the newest), newest first."""
    c = dead.c
    query = sa.select(dead).where(c.incarnation == incarnation)
    if below is not None:
        query = query.where(c.number < below)
    query = query.order_by(c.number.desc()).limit(limit)
    return [(_end(row), _record(row)) for row in (await connection.execute(query)).mappings()]


async def letters_of(
    uow: UnitOfWork,
    incarnation: str,
    *,
    event_ids: Collection[str],
    event_types: Collection[str],
    limit: int,
) -> list[tuple[Delivery, Kept]]:
    """The oldest dead letters of these ids and types (empty: any), locked."""
    c = dead.c
    query = sa.select(dead).where(c.incarnation == incarnation)
    if event_ids:
        query = query.where(c.event_id.in_(list(event_ids)))
    if event_types:
        query = query.where(c.event_type.in_(list(event_types)))
    query = query.order_by(c.number).limit(limit).with_for_update()
    return [(_end(row), _record(row)) for row in (await uow.execute(query)).mappings()]


async def exhume(uow: UnitOfWork, numbers: Collection[int]) -> None:
    """Remove dead letters."""
    if numbers:
        await uow.execute(sa.delete(dead).where(dead.c.number.in_(list(numbers))))


def _end(row: sa.RowMapping) -> Delivery:
    return Delivery(
        event_id=row["event_id"],
        event_type=row["event_type"],
        outcome=Outcome(row["outcome"]),
        detail=row["detail"],
        attempts=row["attempts"],
        time=row["time"],
        trace_id=row["trace_id"],
        number=row["number"],
    )


def _record(row: sa.RowMapping) -> Kept:
    return Kept(
        topic=row["topic"],
        partition=row["partition"],
        offset=row["position"],
        key=bytes(row["key"]),
        value=bytes(row["value"]),
        headers=[
            (name, text.encode("latin-1")) for name, text in json.loads(bytes(row["headers"]))
        ],
        timestamp=row["timestamp"],
        event_id=row["event_id"],
        event_type=row["event_type"],
    )
