"""Adapters, deliveries, subjects of external events, the outbox and remembered requests."""

from __future__ import annotations

from alembic import op

from deskwire_common.migrations import create_tables
from deskwire_events.store import METADATA

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_tables(op, METADATA)
