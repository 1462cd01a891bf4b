"""Sources, sequences, staged rows, the outbox and remembered requests.

Frozen: it spells its own tables and types.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql, sqlite

revision = "0001"
down_revision = None


def _text(length: int) -> sa.types.TypeEngine[str]:
    """Text that compares and sorts by its bytes."""
    return (
        sa.String(length)
        .with_variant(mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), "mysql")
        .with_variant(postgresql.VARCHAR(length, collation="C"), "postgresql")
    )


def _ascii(length: int) -> sa.types.TypeEngine[str]:
    """ASCII that compares and sorts by its bytes."""
    return (
        sa.String(length)
        .with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql")
        .with_variant(postgresql.VARCHAR(length, collation="C"), "postgresql")
    )


_ID = _ascii(36)
_NAME = _ascii(64)
_BLOB = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql")
_LONG_TEXT = sa.Text().with_variant(
    mysql.MEDIUMTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql"
)
_AUTO_ID = sa.BigInteger().with_variant(sqlite.INTEGER(), "sqlite")


def upgrade() -> None:
    _sources()
    _rows()
    _outbox()
    _idempotency()
    _shut_out()
    _ownership()


def _sources() -> None:
    """Sources and their versions."""
    op.create_table(
        "sources",
        sa.Column("incarnation", _ID, nullable=False),
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("source_id", _NAME, nullable=False),
        sa.Column("active", sa.SmallInteger(), nullable=True),
        sa.Column("kind", _NAME, nullable=False),
        sa.Column("url", _LONG_TEXT, nullable=False),
        sa.Column("system_id", _NAME, nullable=False),
        sa.Column("tables", _LONG_TEXT, nullable=False),
        sa.Column("customer_rule", _LONG_TEXT, nullable=False),
        sa.Column("snapshot", sa.SmallInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("state", _NAME, nullable=False),
        sa.Column("position", _LONG_TEXT, nullable=False),
        sa.Column("last_error", _LONG_TEXT, nullable=False),
        sa.Column("change_count", sa.BigInteger(), nullable=False),
        sa.Column("read_count", sa.BigInteger(), nullable=False),
        sa.Column("refused_count", sa.BigInteger(), nullable=False),
        sa.Column("last_change_at", sa.BigInteger(), nullable=False),
        sa.Column("snapshot_cursor", _LONG_TEXT, nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("incarnation", name="pk_sources"),
        sa.UniqueConstraint(
            "tenant_id", "source_id", "active", name="uq_sources_tenant_id_source_id_active"
        ),
    )
    op.create_table(
        "source_versions",
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("source_id", _NAME, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "source_id", name="pk_source_versions"),
    )


def _rows() -> None:
    """The last sequence of every row, the snapshot rows that are being delivered, and those that chat doesn't take."""
    op.create_table(
        "row_sequences",
        sa.Column("subject", _ascii(384), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("subject", name="pk_row_sequences"),
    )
    op.create_table(
        "staged_changes",
        sa.Column("incarnation", _ID, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("row_change", _LONG_TEXT, nullable=False),
        sa.PrimaryKeyConstraint("incarnation", "number", name="pk_staged_changes"),
    )
    op.create_table(
        "refused_rows",
        sa.Column("incarnation", _ID, nullable=False),
        sa.Column("subject", _ascii(384), nullable=False),
        sa.Column("fields", _ascii(64), nullable=False),
        sa.Column("why", _LONG_TEXT, nullable=False),
        sa.Column("at_change", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("incarnation", "subject", name="pk_refused_rows"),
    )


def _ownership() -> None:
    """Living processes, and what each owns."""
    op.create_table(
        "members",
        sa.Column("name", _text(128), nullable=False),
        sa.Column("instance", _ID, nullable=False),
        sa.Column("address", _text(255), nullable=False),
        sa.Column("lease_until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_members"),
    )
    op.create_table(
        "slots",
        sa.Column("kind", _NAME, nullable=False),
        sa.Column("id", _text(255), nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("owner", _text(128), nullable=False),
        sa.PrimaryKeyConstraint("kind", "id", name="pk_slots"),
    )


def _outbox() -> None:
    """Events to publish, and those that were published."""
    op.create_table(
        "outbox",
        sa.Column("id", _AUTO_ID, autoincrement=True, nullable=False),
        sa.Column("topic", _ascii(249), nullable=False),
        sa.Column("key", _text(512), nullable=False),
        sa.Column("event_id", _ID, nullable=False),
        sa.Column("headers", _BLOB, nullable=False),
        sa.Column("value", _BLOB, nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("traceparent", _NAME, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "outbox_published",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("topic", _ascii(249), nullable=False),
        sa.Column("key", _text(512), nullable=False),
        sa.Column("event_id", _ID, nullable=False),
        sa.Column("headers", _BLOB, nullable=False),
        sa.Column("value", _BLOB, nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("traceparent", _NAME, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("published_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_outbox_published"),
    )
    op.create_index("ix_outbox_published_published_at", "outbox_published", ["published_at"])
    op.create_table(
        "outbox_parked",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("topic", _ascii(249), nullable=False),
        sa.Column("key", _text(512), nullable=False),
        sa.Column("event_id", _ID, nullable=False),
        sa.Column("headers", _BLOB, nullable=False),
        sa.Column("value", _BLOB, nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("traceparent", _NAME, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("reason", _ascii(64), nullable=False),
        sa.Column("parked_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_outbox_parked"),
    )
    op.create_index("ix_outbox_parked_topic_key", "outbox_parked", ["topic", "key"])


def _idempotency() -> None:
    """Remembered requests."""
    op.create_table(
        "idempotency",
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("principal", _ascii(272), nullable=False),
        sa.Column("method", _ascii(160), nullable=False),
        sa.Column("request_id", _text(128), nullable=False),
        sa.Column("body_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("response_type", _ascii(160), nullable=False),
        sa.Column("response", _BLOB, nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "tenant_id", "principal", "method", "request_id", name="pk_idempotency"
        ),
    )
    op.create_index("ix_idempotency_created_at", "idempotency", ["created_at"])


def _shut_out() -> None:
    """Who is disabled, and up to where Kafka was read for it."""
    op.create_table(
        "shut_out",
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("agent_id", _ascii(255), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "agent_id", name="pk_shut_out"),
    )
    op.create_table(
        "shut_out_places",
        sa.Column("cluster", _NAME, nullable=False),
        sa.Column("topic", _NAME, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("next", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("cluster", "topic", "number", name="pk_shut_out_places"),
    )
