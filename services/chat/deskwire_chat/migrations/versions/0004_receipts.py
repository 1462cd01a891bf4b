"""How far everybody has got in a conversation."""

from __future__ import annotations

from alembic import op

from deskwire_chat.store.tables import metadata

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    # A database that is new has it from its first migration.
    metadata.tables["receipts"].create(op.get_bind(), checkfirst=True)
