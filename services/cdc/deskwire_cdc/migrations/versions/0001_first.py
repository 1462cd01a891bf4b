"""Sources, sequences, the outbox and remembered requests."""

from __future__ import annotations

from alembic import op

from deskwire_cdc.store import METADATA
from deskwire_common.migrations import create_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create all tables."""
    create_tables(op, METADATA)
