"""Inbox: a consumer's memory of what it has taken in, so that at-least-once delivery has one effect.

Per (consumer, tenant, topic, subject) the last `sequence` is kept and lower or equal ones are ignored; the
topic is part of the key because a subject may be numbered by its version on one and by `seq` on another.
Events without a number (sequence 0, from outside) are remembered by their id.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect

from deskwire.events.v1.event_pb2 import Event
from deskwire_common import db as dbs
from deskwire_common import topics
from deskwire_common.clock import Clock, SystemClock, to_micros
from deskwire_common.db import UnitOfWork
from deskwire_common.errors import InvalidArgument

_KEYS: Final = ("consumer", "tenant_id", "topic", "subject")
#: A row change's subject is `<tenant>/<source>/<table>/<key>`.
MAX_SUBJECT: Final = 512


def inbox_table(metadata: sa.MetaData) -> sa.Table:
    """The table `inbox` of a service."""
    return sa.Table(
        "inbox",
        metadata,
        sa.Column("consumer", dbs.Name, primary_key=True),
        sa.Column("tenant_id", dbs.Name, primary_key=True),
        sa.Column("topic", dbs.ascii_text(249), primary_key=True),
        sa.Column("subject", dbs.binary_text(MAX_SUBJECT), primary_key=True),
        sa.Column("sequence", dbs.UInt32, nullable=False),
        sa.Column("updated_at", dbs.Micros, nullable=False, index=True),
    )


class Inbox:
    """Accepts each event once per consumer, inside the consumer's own transaction."""

    def __init__(self, metadata: sa.MetaData, clock: Clock | None = None) -> None:
        self.table = inbox_table(metadata)
        self._clock = clock or SystemClock()

    async def accept(
        self, uow: UnitOfWork, consumer: str, event: Event, *, topic: str = ""
    ) -> bool:
        """Is it news? True: do the work in this transaction and commit. False: it was done before.

        `topic` is the one it came on; by default the one its type belongs to. Concurrent callers with the same
        subject wait for each other. Raises InvalidArgument for a subject longer than MAX_SUBJECT.
        """
        if len(event.subject) > MAX_SUBJECT:
            raise InvalidArgument(
                f"the subject is longer than {MAX_SUBJECT} characters", field="subject"
            )
        row: dict[str, Any] = {
            "consumer": consumer,
            "tenant_id": event.tenant_id,
            "topic": topic or self._topic_of(event),
            "subject": event.subject if event.sequence else f"#{event.event_id}",
            "sequence": event.sequence,
            "updated_at": to_micros(self._clock.now()),
        }
        if not event.sequence:
            return await dbs.insert_if_absent(uow, self.table, row)
        if uow.dialect == "mysql":
            # Update, else insert, else (it is there: not lower, or inserted meanwhile) update again.
            return (
                await self._advance(uow, row)
                or await dbs.insert_if_absent(uow, self.table, row)
                or await self._advance(uow, row)
            )
        flavour: Any = postgresql.insert if uow.dialect == "postgresql" else sqlite_dialect.insert
        insert = flavour(self.table)
        result = await uow.execute(
            insert.on_conflict_do_update(
                index_elements=list(_KEYS),
                set_={name: insert.excluded[name] for name in ("sequence", "updated_at")},
                where=self.table.c.sequence < insert.excluded.sequence,
            ),
            row,
        )
        return result.rowcount == 1

    async def purge(self, uow: UnitOfWork, *, before: int) -> int:
        """Forget subjects that were last heard of before `before` (microseconds); how many.

        Only as old as the topic's retention, or an event that is read again would count as news.
        """
        result = await uow.execute(sa.delete(self.table).where(self.table.c.updated_at < before))
        return result.rowcount

    @staticmethod
    def _topic_of(event: Event) -> str:
        try:
            return topics.topic_for(event.event_type).name
        except InvalidArgument:
            return topics.EXTERNAL.name

    async def _advance(self, uow: UnitOfWork, row: dict[str, Any]) -> bool:
        c = self.table.c
        statement = (
            sa.update(self.table)
            .where(*(c[name] == row[name] for name in _KEYS), c.sequence < row["sequence"])
            .values(sequence=row["sequence"], updated_at=row["updated_at"])
        )
        return (await uow.execute(statement)).rowcount == 1
