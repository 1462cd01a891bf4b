"""Events that were published, kept for a while where the broker keeps none."""

from __future__ import annotations

from alembic import op

from deskwire_cdc.store import METADATA

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # A database that is new has it from its first migration.
    METADATA.tables["outbox_published"].create(op.get_bind(), checkfirst=True)
