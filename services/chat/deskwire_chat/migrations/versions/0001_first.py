"""Conversations, messages, customers, agents, partitions, the outbox and remembered requests."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Integer, SmallInteger, Table

from deskwire_chat.store.tables import metadata
from deskwire_common import db

revision = "0001"
down_revision = None

# What no later migration has touched is as it is now.
_UNTOUCHED = (
    "partitions",
    "conversations",
    "messages",
    "customers",
    "customer_identities",
    "source_versions",
    "outbox",
    "idempotency",
)


def upgrade() -> None:
    connection = op.get_bind()
    tables = [metadata.tables[name] for name in _UNTOUCHED]
    metadata.create_all(connection, tables=tables, checkfirst=False)
    Table(
        "agents",
        db.metadata(),
        Column("tenant_id", db.Name, primary_key=True),
        Column("agent_id", db.Name, primary_key=True),
        Column("display_name", db.binary_text(128), nullable=False),
        Column("status", SmallInteger, nullable=False),
        Column("capacity", Integer, nullable=False),
        Column("active", Integer, nullable=False),
        Column("idle_since", db.Micros, nullable=False),
        Column("version", db.UInt32, nullable=False),
    ).create(connection)
