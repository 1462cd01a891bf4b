"""Events that were published, kept for a while where the broker keeps none."""

from __future__ import annotations

from alembic import op

from deskwire_chat.store.tables import metadata

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # A database that is new has it from its first migration.
    metadata.tables["outbox_published"].create(op.get_bind(), checkfirst=True)
