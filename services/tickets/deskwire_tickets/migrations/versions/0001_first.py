"""Tickets, their audit, the outbox and remembered requests. Frozen: it spells its own tables and types."""

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
_SUBJECT = _ascii(255)
_BLOB = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql")
_LONG_TEXT = sa.Text().with_variant(
    mysql.MEDIUMTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql"
)
_AUTO_ID = sa.BigInteger().with_variant(sqlite.INTEGER(), "sqlite")


def upgrade() -> None:
    _tickets()
    _outbox()
    _idempotency()
    _shut_out()
    _ownership()


def _tickets() -> None:
    """Tickets, their audit and their numbers."""
    op.create_table(
        "tickets",
        sa.Column("ticket_id", _ID, nullable=False),
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("subject", _LONG_TEXT, nullable=False),
        sa.Column("description", _LONG_TEXT, nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("conversation_id", _ID, nullable=False),
        sa.Column("customer_id", _ID, nullable=False),
        sa.Column("assignee_id", _SUBJECT, nullable=False),
        sa.Column("resolution", _LONG_TEXT, nullable=False),
        sa.Column("reopen_count", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.Column("solve_time", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("ticket_id", name="pk_tickets"),
        sa.UniqueConstraint("tenant_id", "number", name="uq_tickets_tenant_id_number"),
    )
    op.create_index(
        "ix_tickets_tenant_id_assignee_id_number", "tickets", ["tenant_id", "assignee_id", "number"]
    )
    op.create_index(
        "ix_tickets_tenant_id_conversation_id_number",
        "tickets",
        ["tenant_id", "conversation_id", "number"],
    )
    op.create_index(
        "ix_tickets_tenant_id_customer_id_number", "tickets", ["tenant_id", "customer_id", "number"]
    )
    op.create_index(
        "ix_tickets_tenant_id_state_number", "tickets", ["tenant_id", "state", "number"]
    )
    op.create_table(
        "ticket_audit",
        sa.Column("ticket_id", _ID, nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("action", _NAME, nullable=False),
        sa.Column("actor_role", sa.SmallInteger(), nullable=False),
        sa.Column("actor_subject", _SUBJECT, nullable=False),
        sa.Column("actor_name", _LONG_TEXT, nullable=False),
        sa.Column("origin", _NAME, nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("from_state", sa.SmallInteger(), nullable=True),
        sa.Column("to_state", sa.SmallInteger(), nullable=False),
        sa.Column("note", _LONG_TEXT, nullable=False),
        sa.PrimaryKeyConstraint("ticket_id", "version", name="pk_ticket_audit"),
    )
    op.create_table(
        "ticket_numbers",
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_ticket_numbers"),
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
