"""Subscriptions, their places, kept records, subjects of external events, the outbox and remembered requests.

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
    _subscriptions()
    _kept()
    _external_subjects()
    _outbox()
    _idempotency()
    _shut_out()
    _ownership()


def _subscriptions() -> None:
    """Subscriptions, how they get on, and where they are."""
    op.create_table(
        "subscriptions",
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("subscription_id", _NAME, nullable=False),
        sa.Column("incarnation", _ID, nullable=False),
        sa.Column("slot", sa.SmallInteger(), nullable=False),
        sa.Column("kind", _NAME, nullable=False),
        sa.Column("system_id", _NAME, nullable=False),
        sa.Column("filter", _LONG_TEXT, nullable=False),
        sa.Column("sink", _LONG_TEXT, nullable=False),
        sa.Column("secrets", _LONG_TEXT, nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("reason", _LONG_TEXT, nullable=False),
        sa.Column("role", _NAME, nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("removed", sa.SmallInteger(), nullable=False),
        sa.Column("seek", _LONG_TEXT, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "subscription_id", name="pk_subscriptions"),
        sa.UniqueConstraint("incarnation", name="uq_subscriptions_incarnation"),
    )
    op.create_index("ix_subscriptions_slot", "subscriptions", ["slot"])
    op.create_table(
        "progress",
        sa.Column("incarnation", _ID, nullable=False),
        sa.Column("delivered_count", sa.BigInteger(), nullable=False),
        sa.Column("dead_letter_count", sa.BigInteger(), nullable=False),
        sa.Column("rejected_in_row", sa.BigInteger(), nullable=False),
        sa.Column("failing", sa.SmallInteger(), nullable=False),
        sa.Column("last_error", _LONG_TEXT, nullable=False),
        sa.PrimaryKeyConstraint("incarnation", name="pk_progress"),
    )
    op.create_table(
        "places",
        sa.Column("incarnation", _ID, nullable=False),
        sa.Column("topic", _ascii(249), nullable=False),
        sa.Column("positions", _LONG_TEXT, nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("incarnation", "topic", name="pk_places"),
    )
    op.create_table(
        "hub_keys",
        sa.Column("name", _NAME, nullable=False),
        sa.Column("secret", sa.LargeBinary(64), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_hub_keys"),
    )


def _record() -> list[sa.Column[object]]:
    return [
        sa.Column("key", _BLOB, nullable=False),
        sa.Column("value", _BLOB, nullable=False),
        sa.Column("headers", _BLOB, nullable=False),
        sa.Column("timestamp", sa.BigInteger(), nullable=False),
        sa.Column("event_id", _ID, nullable=False),
        sa.Column("event_type", _NAME, nullable=False),
    ]


def _kept() -> None:
    """Records that wait for their next try, dead letters, and the last ends."""
    op.create_table(
        "parked",
        sa.Column("incarnation", _ID, nullable=False),
        sa.Column("topic", _ascii(249), nullable=False),
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("lane", _NAME, nullable=False),
        *_record(),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("refusals", sa.BigInteger(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("due", sa.BigInteger(), nullable=False),
        sa.Column("detail", _LONG_TEXT, nullable=False),
        sa.PrimaryKeyConstraint("incarnation", "topic", "partition", "position", name="pk_parked"),
    )
    op.create_index("ix_parked_incarnation_lane", "parked", ["incarnation", "lane"])
    op.create_table(
        "dead",
        sa.Column("number", _AUTO_ID, autoincrement=True, nullable=False),
        sa.Column("incarnation", _ID, nullable=False),
        sa.Column("topic", _ascii(249), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        *_record(),
        sa.Column("outcome", sa.SmallInteger(), nullable=False),
        sa.Column("detail", _LONG_TEXT, nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("trace_id", _NAME, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_dead"),
        sa.UniqueConstraint(
            "incarnation",
            "topic",
            "partition",
            "position",
            name="uq_dead_incarnation_topic_partition_position",
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_dead_incarnation_number", "dead", ["incarnation", "number"])
    op.create_table(
        "deliveries",
        sa.Column("number", _AUTO_ID, autoincrement=True, nullable=False),
        sa.Column("incarnation", _ID, nullable=False),
        sa.Column("event_id", _ID, nullable=False),
        sa.Column("event_type", _NAME, nullable=False),
        sa.Column("outcome", sa.SmallInteger(), nullable=False),
        sa.Column("detail", _LONG_TEXT, nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("trace_id", _NAME, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_deliveries"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_deliveries_incarnation_number", "deliveries", ["incarnation", "number"])


def _external_subjects() -> None:
    """The last sequence of each subject of external events, and the ids that their systems gave them."""
    op.create_table(
        "external_ids",
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("source", _NAME, nullable=False),
        sa.Column("event_id", _ID, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "source", "event_id", name="pk_external_ids"),
    )
    op.create_index("ix_external_ids_created_at", "external_ids", ["created_at"])
    op.create_table(
        "external_subjects",
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("subject", _text(128), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "subject", name="pk_external_subjects"),
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
