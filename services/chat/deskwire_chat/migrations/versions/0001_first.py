"""Conversations, messages, customers, agents, partitions, the outbox and remembered requests."""

from __future__ import annotations

from alembic import op

from deskwire_chat.store.tables import metadata
from deskwire_common.migrations import create_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_tables(op, metadata)
