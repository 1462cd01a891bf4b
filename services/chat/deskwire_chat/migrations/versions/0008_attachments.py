"""Files of conversations."""

from __future__ import annotations

from alembic import op

from deskwire_chat.store.tables import metadata

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    metadata.tables["attachments"].create(op.get_bind())
