"""The tables of the hub."""

from __future__ import annotations

import sqlalchemy as sa

from deskwire_common import db
from deskwire_common.idempotency import idempotency_table
from deskwire_common.outbox import Outbox
from deskwire_common.ownership import members_table, slots_table
from deskwire_common.shutout import shut_out_places_table, shut_out_table

METADATA = db.metadata()

subscriptions = sa.Table(
    "subscriptions",
    METADATA,
    sa.Column("tenant_id", db.Name, primary_key=True),
    sa.Column("subscription_id", db.Name, primary_key=True),
    sa.Column("incarnation", db.Id, nullable=False, unique=True),
    sa.Column("slot", sa.SmallInteger, nullable=False),
    sa.Column("kind", db.Name, nullable=False),
    sa.Column("system_id", db.Name, nullable=False),
    sa.Column("filter", db.LongText, nullable=False),
    sa.Column("sink", db.LongText, nullable=False),
    sa.Column("secrets", db.LongText, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("reason", db.LongText, nullable=False),
    sa.Column("role", db.Name, nullable=False),
    sa.Column("create_time", db.Micros, nullable=False),
    sa.Column("version", db.UInt32, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("sequence", db.UInt32, nullable=False),
    sa.Column("removed", sa.SmallInteger, nullable=False),
    sa.Column("seek", db.LongText, nullable=False),
    sa.Index(None, "slot"),
)

# Written by the owner of the slot, in its ticks; the rows above are written by callers.
progress = sa.Table(
    "progress",
    METADATA,
    sa.Column("incarnation", db.Id, primary_key=True),
    sa.Column("delivered_count", sa.BigInteger, nullable=False),
    sa.Column("dead_letter_count", sa.BigInteger, nullable=False),
    sa.Column("rejected_in_row", sa.BigInteger, nullable=False),
    sa.Column("failing", sa.SmallInteger, nullable=False),
    sa.Column("last_error", db.LongText, nullable=False),
)

# One row per topic: `positions` is JSON, partition → the lowest offset that hasn't finished.
places = sa.Table(
    "places",
    METADATA,
    sa.Column("incarnation", db.Id, primary_key=True),
    sa.Column("topic", db.ascii_text(249), primary_key=True),
    sa.Column("positions", db.LongText, nullable=False),
    sa.Column("term", sa.BigInteger, nullable=False),
)


def _record() -> list[sa.Column[object]]:
    """The columns of a record that is kept, so that it outlives its topic's retention."""
    return [
        sa.Column("key", db.Blob, nullable=False),
        sa.Column("value", db.Blob, nullable=False),
        sa.Column("headers", db.Blob, nullable=False),
        sa.Column("timestamp", sa.BigInteger, nullable=False),
        sa.Column("event_id", db.Id, nullable=False),
        sa.Column("event_type", db.Name, nullable=False),
    ]


parked = sa.Table(
    "parked",
    METADATA,
    sa.Column("incarnation", db.Id, primary_key=True),
    sa.Column("topic", db.ascii_text(249), primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("lane", db.Name, nullable=False),
    *_record(),
    sa.Column("attempts", db.UInt32, nullable=False),
    sa.Column("refusals", db.UInt32, nullable=False),
    sa.Column("since", db.Micros, nullable=False),
    sa.Column("due", db.Micros, nullable=False),
    sa.Column("detail", db.LongText, nullable=False),
    sa.Index(None, "incarnation", "lane"),
)

dead = sa.Table(
    "dead",
    METADATA,
    sa.Column("number", db.AutoId, primary_key=True, autoincrement=True),
    sa.Column("incarnation", db.Id, nullable=False),
    sa.Column("topic", db.ascii_text(249), nullable=False),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    *_record(),
    sa.Column("outcome", sa.SmallInteger, nullable=False),
    sa.Column("detail", db.LongText, nullable=False),
    sa.Column("attempts", db.UInt32, nullable=False),
    sa.Column("time", db.Micros, nullable=False),
    sa.Column("trace_id", db.Name, nullable=False),
    sa.UniqueConstraint("incarnation", "topic", "partition", "position"),
    sa.Index(None, "incarnation", "number"),
    sqlite_autoincrement=True,
)

# The last ends of push sinks, for people.
deliveries = sa.Table(
    "deliveries",
    METADATA,
    sa.Column("number", db.AutoId, primary_key=True, autoincrement=True),
    sa.Column("incarnation", db.Id, nullable=False),
    sa.Column("event_id", db.Id, nullable=False),
    sa.Column("event_type", db.Name, nullable=False),
    sa.Column("outcome", sa.SmallInteger, nullable=False),
    sa.Column("detail", db.LongText, nullable=False),
    sa.Column("attempts", db.UInt32, nullable=False),
    sa.Column("time", db.Micros, nullable=False),
    sa.Column("trace_id", db.Name, nullable=False),
    sa.Index(None, "incarnation", "number"),
    sqlite_autoincrement=True,
)

external_subjects = sa.Table(
    "external_subjects",
    METADATA,
    sa.Column("tenant_id", db.Name, primary_key=True),
    sa.Column("subject", db.binary_text(128), primary_key=True),
    sa.Column("last", db.UInt32, nullable=False),
)

# Ids that outside systems gave their events, so that none is published twice.
external_ids = sa.Table(
    "external_ids",
    METADATA,
    sa.Column("tenant_id", db.Name, primary_key=True),
    sa.Column("source", db.Name, primary_key=True),
    sa.Column("event_id", db.Id, primary_key=True),
    sa.Column("created_at", db.Micros, nullable=False, index=True),
)

# Random keys that all hubs of this database share, by what they are for.
hub_keys = sa.Table(
    "hub_keys",
    METADATA,
    sa.Column("name", db.Name, primary_key=True),
    sa.Column("secret", sa.LargeBinary(64), nullable=False),
)

Outbox(METADATA)
members_table(METADATA)
slots_table(METADATA)
idempotency_table(METADATA)
shut_out_table(METADATA)
shut_out_places_table(METADATA)
