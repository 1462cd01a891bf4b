"""Who is a bot, which conversations are with one, and which wait for a person."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    inspector = sa.inspect(op.get_bind())
    for table, names in (("agents", ("bot",)), ("conversations", ("agent_is_bot", "human_wanted"))):
        # A database that is new has some of them from its first migration.
        there = {column["name"] for column in inspector.get_columns(table)}
        for name in names:
            if name not in there:
                column = sa.Column(name, sa.Boolean, nullable=False, server_default=sa.false())
                op.add_column(table, column)
