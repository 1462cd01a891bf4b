"""Which chat processes live, and where the others reach them."""

from __future__ import annotations

from alembic import op

from deskwire_chat.store.tables import metadata

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    metadata.tables["shards"].create(op.get_bind())
