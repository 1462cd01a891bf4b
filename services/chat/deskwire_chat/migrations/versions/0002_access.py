"""Tenants and integration keys; agents that can be disabled."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Boolean, Column, Index, LargeBinary, Table, false

from deskwire_common import db

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # With a default, as the running version inserts agents without it.
    op.add_column("agents", Column("disabled", Boolean, nullable=False, server_default=false()))
    op.create_index("agents_disabled", "agents", ["disabled"])
    metadata = db.metadata()
    Table(
        "tenants",
        metadata,
        Column("tenant_id", db.Name, primary_key=True),
        Column("display_name", db.binary_text(128), nullable=False),
        Column("disabled", Boolean, nullable=False),
        Column("version", db.UInt32, nullable=False),
        Column("created_at", db.Micros, nullable=False),
        Column("updated_at", db.Micros, nullable=False),
        Index("tenants_disabled", "disabled"),
    )
    Table(
        "integration_keys",
        metadata,
        Column("key_id", db.Id, primary_key=True),
        Column("tenant_id", db.Name, nullable=False),
        Column("system_id", db.Name, nullable=False),
        Column("display_name", db.binary_text(128), nullable=False),
        Column("secret_hash", LargeBinary(32), nullable=False),
        Column("revoked", Boolean, nullable=False),
        Column("version", db.UInt32, nullable=False),
        Column("created_at", db.Micros, nullable=False),
        Column("updated_at", db.Micros, nullable=False),
        Index("integration_keys_tenant", "tenant_id", "key_id"),
    )
    metadata.create_all(op.get_bind(), checkfirst=False)
