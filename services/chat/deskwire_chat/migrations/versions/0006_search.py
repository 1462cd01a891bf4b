"""The index of messages' words."""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

from deskwire_chat.store.search import WORDS, metadata

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    connection = op.get_bind()
    metadata.create_all(connection)
    for statement in WORDS[connection.dialect.name]:
        connection.execute(text(statement))
