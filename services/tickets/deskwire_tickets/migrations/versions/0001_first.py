"""Tickets, their audit, the outbox and remembered requests."""

from __future__ import annotations

from alembic import op

from deskwire_common.migrations import create_tables
from deskwire_tickets.store import METADATA

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_tables(op, METADATA)
