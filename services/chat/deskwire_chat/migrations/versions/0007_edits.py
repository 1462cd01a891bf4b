"""What a message is, what it changes, and when it was changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from deskwire_chat.store.tables import messages

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    # A database that is new has them from its first migration.
    there = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("messages")}
    for name in ("kind", "target_seq", "changed_at"):
        if name not in there:
            column = messages.c[name]
            op.add_column(
                "messages",
                sa.Column(
                    name, column.type, nullable=False, server_default=column.server_default.arg
                ),
            )
