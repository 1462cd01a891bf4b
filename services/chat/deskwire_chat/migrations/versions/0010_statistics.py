"""What PostgreSQL's autovacuum looks at in the tables that every message grows.

It samples 300 rows for each unit of a column's target: 30,000 pages of them once a minute while a table is young, a
second of a core that messages wait for. What the planner has to know of these tables, their indexes tell it.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import inspect

revision = "0010"
down_revision = "0009"

_TARGET = 10
_LOOKED_UP = {
    "messages": {"conversation_id", "seq", "partition_id", "position"},
    "message_search": {"tenant_id", "conversation_id", "created_at", "words"},
}


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    inspector = inspect(connection)
    for table, looked_up in _LOOKED_UP.items():
        for column in inspector.get_columns(table):
            name = column["name"]
            target = _TARGET if name in looked_up else 0
            op.execute(f'ALTER TABLE {table} ALTER COLUMN "{name}" SET STATISTICS {target}')
