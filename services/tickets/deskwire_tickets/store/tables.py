"""The tables of tickets."""

from __future__ import annotations

import sqlalchemy as sa

from deskwire_common import db
from deskwire_common.idempotency import idempotency_table
from deskwire_common.outbox import Outbox
from deskwire_common.ownership import members_table, slots_table
from deskwire_common.shutout import shut_out_places_table, shut_out_table

METADATA = db.metadata()

tickets = sa.Table(
    "tickets",
    METADATA,
    sa.Column("ticket_id", db.Id, primary_key=True),
    sa.Column("tenant_id", db.Name, nullable=False),
    sa.Column("number", db.UInt32, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("subject", db.LongText, nullable=False),
    sa.Column("description", db.LongText, nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("conversation_id", db.Id, nullable=False),
    sa.Column("customer_id", db.Id, nullable=False),
    sa.Column("assignee_id", db.Subject, nullable=False),
    sa.Column("resolution", db.LongText, nullable=False),
    sa.Column("reopen_count", db.UInt32, nullable=False),
    sa.Column("version", db.UInt32, nullable=False),
    sa.Column("create_time", db.Micros, nullable=False),
    sa.Column("update_time", db.Micros, nullable=False),
    sa.Column("solve_time", db.Micros, nullable=True),
    sa.UniqueConstraint("tenant_id", "number"),
    sa.Index(None, "tenant_id", "conversation_id", "number"),
    sa.Index(None, "tenant_id", "customer_id", "number"),
    sa.Index(None, "tenant_id", "assignee_id", "number"),
    sa.Index(None, "tenant_id", "state", "number"),
)

audit = sa.Table(
    "ticket_audit",
    METADATA,
    sa.Column("ticket_id", db.Id, primary_key=True),
    sa.Column("version", db.UInt32, primary_key=True, autoincrement=False),
    sa.Column("tenant_id", db.Name, nullable=False),
    sa.Column("action", db.Name, nullable=False),
    sa.Column("actor_role", sa.SmallInteger, nullable=False),
    sa.Column("actor_subject", db.Subject, nullable=False),
    sa.Column("actor_name", db.LongText, nullable=False),
    sa.Column("origin", db.Name, nullable=False),
    sa.Column("time", db.Micros, nullable=False),
    sa.Column("from_state", sa.SmallInteger, nullable=True),
    sa.Column("to_state", sa.SmallInteger, nullable=False),
    sa.Column("note", db.LongText, nullable=False),
)

numbers = sa.Table(
    "ticket_numbers",
    METADATA,
    sa.Column("tenant_id", db.Name, primary_key=True),
    sa.Column("last", db.UInt32, nullable=False),
)

Outbox(METADATA)
members_table(METADATA)
slots_table(METADATA)
idempotency_table(METADATA)
shut_out_table(METADATA)
shut_out_places_table(METADATA)
