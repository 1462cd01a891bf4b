"""The tables of change capture."""

from __future__ import annotations

import sqlalchemy as sa

from deskwire_common import db
from deskwire_common.idempotency import idempotency_table
from deskwire_common.outbox import Outbox
from deskwire_common.ownership import members_table, slots_table
from deskwire_common.shutout import shut_out_places_table, shut_out_table

METADATA = db.metadata()
idempotency_table(METADATA)
shut_out_table(METADATA)
shut_out_places_table(METADATA)
Outbox(METADATA)
members_table(METADATA)
slots_table(METADATA)

sources = sa.Table(
    "sources",
    METADATA,
    sa.Column("incarnation", db.Id, primary_key=True),
    sa.Column("tenant_id", db.Name, nullable=False),
    sa.Column("source_id", db.Name, nullable=False),
    # 1, or NULL once deleted: the row stays until what was installed in the source is taken out.
    sa.Column("active", sa.SmallInteger, nullable=True),
    sa.Column("kind", db.Name, nullable=False),
    sa.Column("url", db.LongText, nullable=False),
    sa.Column("system_id", db.Name, nullable=False),
    sa.Column("tables", db.LongText, nullable=False),
    sa.Column("customer_rule", db.LongText, nullable=False),
    sa.Column("snapshot", sa.SmallInteger, nullable=False),
    sa.Column("created_at", db.Micros, nullable=False),
    sa.Column("version", db.UInt32, nullable=False),
    sa.Column("state", db.Name, nullable=False),
    sa.Column("position", db.LongText, nullable=False),
    sa.Column("last_error", db.LongText, nullable=False),
    sa.Column("change_count", sa.BigInteger, nullable=False),
    sa.Column("read_count", sa.BigInteger, nullable=False),
    sa.Column("refused_count", sa.BigInteger, nullable=False),
    sa.Column("last_change_at", db.Micros, nullable=False),
    sa.Column("snapshot_cursor", db.LongText, nullable=False),
    sa.Column("term", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("tenant_id", "source_id", "active"),
)

# Outlives the source: the sequence of its events goes on when it is created again.
versions = sa.Table(
    "source_versions",
    METADATA,
    sa.Column("tenant_id", db.Name, primary_key=True),
    sa.Column("source_id", db.Name, primary_key=True),
    sa.Column("version", db.UInt32, nullable=False),
)

# The last sequence of every row that ever changed; outlives the source for the same reason.
sequences = sa.Table(
    "row_sequences",
    METADATA,
    sa.Column("subject", db.ascii_text(384), primary_key=True),
    sa.Column("sequence", db.UInt32, nullable=False),
)

# The snapshot rows that are being delivered: read once, so that a repeated delivery says the same.
staged = sa.Table(
    "staged_changes",
    METADATA,
    sa.Column("incarnation", db.Id, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("row_change", db.LongText, nullable=False),
)

# The rows that chat doesn't take, or not whole, until they are corrected or deleted.
refused = sa.Table(
    "refused_rows",
    METADATA,
    sa.Column("incarnation", db.Id, primary_key=True),
    sa.Column("subject", db.ascii_text(384), primary_key=True),
    # The customer's fields that are refused, with commas; empty: the whole row.
    sa.Column("fields", db.ascii_text(64), nullable=False),
    sa.Column("why", db.LongText, nullable=False),
    # The source's count of changes when it was refused: which one is the last.
    sa.Column("at_change", sa.BigInteger, nullable=False),
)
