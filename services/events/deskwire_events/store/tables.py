"""The tables of the hub."""

from __future__ import annotations

import sqlalchemy as sa

from deskwire_common import db
from deskwire_common.idempotency import idempotency_table
from deskwire_common.outbox import outbox_table, published_table
from deskwire_common.ownership import members_table, slots_table
from deskwire_common.shutout import shut_out_places_table, shut_out_table

METADATA = db.metadata()

adapters = sa.Table(
    "adapters",
    METADATA,
    sa.Column("tenant_id", db.Name, primary_key=True),
    sa.Column("adapter_id", db.Name, primary_key=True),
    sa.Column("system_id", db.Name, nullable=False),
    sa.Column("target", db.LongText, nullable=False),
    sa.Column("event_types", db.LongText, nullable=False),
    sa.Column("accepts", db.LongText, nullable=False),
    sa.Column("credentials", db.LongText, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("last_error", db.LongText, nullable=False),
    sa.Column("delivered_count", sa.BigInteger, nullable=False),
    sa.Column("dead_letter_count", sa.BigInteger, nullable=False),
    sa.Column("rejected_in_row", sa.BigInteger, nullable=False),
    sa.Column("create_time", db.Micros, nullable=False),
    sa.Column("version", db.UInt32, nullable=False),
    sa.Column("registration", db.UInt32, nullable=False),
    sa.Column("removed", sa.SmallInteger, nullable=False),
)

deliveries = sa.Table(
    "deliveries",
    METADATA,
    sa.Column("number", db.AutoId, primary_key=True, autoincrement=True),
    sa.Column("tenant_id", db.Name, nullable=False),
    sa.Column("adapter_id", db.Name, nullable=False),
    sa.Column("event_id", db.Id, nullable=False),
    sa.Column("event_type", db.Name, nullable=False),
    sa.Column("outcome", sa.SmallInteger, nullable=False),
    sa.Column("dead", sa.SmallInteger, nullable=False),
    sa.Column("detail", db.LongText, nullable=False),
    sa.Column("attempts", db.UInt32, nullable=False),
    sa.Column("time", db.Micros, nullable=False),
    sa.Column("trace_id", db.Name, nullable=False),
    sa.UniqueConstraint("tenant_id", "adapter_id", "event_id"),
    sa.Index(None, "tenant_id", "adapter_id", "number"),
    sa.Index(None, "tenant_id", "adapter_id", "dead", "number"),
    sqlite_autoincrement=True,
)

external_subjects = sa.Table(
    "external_subjects",
    METADATA,
    sa.Column("tenant_id", db.Name, primary_key=True),
    sa.Column("subject", db.binary_text(128), primary_key=True),
    sa.Column("last", db.UInt32, nullable=False),
)

outbox_table(METADATA)
published_table(METADATA)
members_table(METADATA)
slots_table(METADATA)
idempotency_table(METADATA)
shut_out_table(METADATA)
shut_out_places_table(METADATA)
