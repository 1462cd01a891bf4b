"""Conversations and their messages, customers, agents, access, attachments, the index of words, and the outbox.

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
_SUBJECT = _ascii(255)
_BLOB = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql")
_AUTO_ID = sa.BigInteger().with_variant(sqlite.INTEGER(), "sqlite")

# The place of the words themselves, of which SQLAlchemy knows nothing.
_WORDS = {
    "postgresql": (
        "ALTER TABLE message_search ADD COLUMN words tsvector NOT NULL",
        "CREATE INDEX message_search_words ON message_search USING gin (words)",
    ),
    "mysql": (
        "ALTER TABLE message_search ADD COLUMN words MEDIUMTEXT CHARACTER SET ascii COLLATE ascii_bin NOT NULL,"
        " ADD FULLTEXT INDEX message_search_words (words)",
    ),
    "sqlite": ("CREATE VIRTUAL TABLE message_words USING fts5(words)",),
}

# PostgreSQL's autovacuum samples 300 rows for each unit of a column's target: 30,000 pages of the tables that every
# message grows once a minute while they are young, a second of a core that messages wait for. What the planner has to
# know of these tables, their indexes tell it.
_SAMPLED = {
    "messages": {"conversation_id", "seq", "partition_id", "position"},
    "message_search": {"tenant_id", "conversation_id", "created_at", "words"},
}
_SAMPLE_TARGET = 10


def upgrade() -> None:
    _ownership()
    _conversations()
    _attachments()
    _customers()
    _access()
    _search()
    _outbox()
    _idempotency()
    _statistics()


def _ownership() -> None:
    """Partitions, the chat processes that own them, and what else they own."""
    op.create_table(
        "partitions",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("owner", _text(128), nullable=False),
        sa.Column("head", sa.BigInteger(), nullable=False),
        sa.Column("published", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_partitions"),
    )
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


def _conversations() -> None:
    """Conversations, their messages, and how far everybody has got in them."""
    op.create_table(
        "conversations",
        sa.Column("conversation_id", _ID, nullable=False),
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("customer_id", _ID, nullable=False),
        sa.Column("visitor_id", _SUBJECT, nullable=False),
        sa.Column("agent_id", _SUBJECT, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("assigned_at", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", sa.BigInteger(), nullable=False),
        sa.Column("traceparent", _NAME, nullable=False),
        sa.Column("agent_is_bot", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("human_wanted", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("conversation_id", name="pk_conversations"),
    )
    op.create_index("conversations_agent", "conversations", ["tenant_id", "agent_id", "state"])
    op.create_index(
        "conversations_customer", "conversations", ["tenant_id", "customer_id", "state"]
    )
    op.create_index(
        "conversations_newest", "conversations", ["tenant_id", "created_at", "conversation_id"]
    )
    op.create_index(
        "conversations_queue", "conversations", ["state", "created_at", "conversation_id"]
    )
    op.create_index("conversations_visitor", "conversations", ["tenant_id", "visitor_id", "state"])
    op.create_index(
        "conversations_visitor_newest",
        "conversations",
        ["tenant_id", "visitor_id", "created_at", "conversation_id"],
    )
    op.create_table(
        "messages",
        sa.Column("conversation_id", _ID, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("message_id", _ID, nullable=False),
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("sender_role", sa.SmallInteger(), nullable=False),
        sa.Column("sender_id", _SUBJECT, nullable=False),
        sa.Column("sender_name", _text(128), nullable=False),
        sa.Column("origin", _NAME, nullable=False),
        sa.Column("client_msg_id", _text(64), nullable=False),
        sa.Column("body", _BLOB, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("traceparent", _NAME, nullable=False),
        sa.Column("partition_id", sa.SmallInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False, server_default=sa.text("1")),
        sa.Column("target_seq", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("changed_at", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("imported", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("conversation_id", "seq", name="pk_messages"),
        sa.UniqueConstraint("partition_id", "position", name="messages_log"),
        sa.UniqueConstraint(
            "conversation_id",
            "sender_role",
            "sender_id",
            "client_msg_id",
            name="messages_sent_once",
        ),
    )
    op.create_table(
        "imported_conversations",
        sa.Column("conversation_id", _ID, nullable=False),
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("source", _NAME, nullable=False),
        sa.Column("external_id", _text(128), nullable=False),
        sa.Column("imported_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("conversation_id", name="pk_imported_conversations"),
    )
    op.create_table(
        "receipts",
        sa.Column("conversation_id", _ID, nullable=False),
        sa.Column("role", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("subject", _SUBJECT, nullable=False),
        sa.Column("delivered_seq", sa.BigInteger(), nullable=False),
        sa.Column("read_seq", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("conversation_id", "role", "subject", name="pk_receipts"),
    )


def _attachments() -> None:
    """Files of conversations."""
    op.create_table(
        "attachments",
        sa.Column("attachment_id", _ID, nullable=False),
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("conversation_id", _ID, nullable=False),
        sa.Column("uploader_role", sa.SmallInteger(), nullable=False),
        sa.Column("uploader_id", _SUBJECT, nullable=False),
        sa.Column("uploader_name", _text(128), nullable=False),
        sa.Column("file_name", _text(255), nullable=False),
        sa.Column("content_type", _ascii(127), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", _NAME, nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("remove_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("attachment_id", name="pk_attachments"),
    )
    op.create_index("attachments_due", "attachments", ["remove_at"])
    op.create_index("attachments_message", "attachments", ["conversation_id", "seq"])
    op.create_index("attachments_unsent", "attachments", ["tenant_id", "uploader_id", "state"])


def _customers() -> None:
    """Customers and by what they are known."""
    op.create_table(
        "customers",
        sa.Column("customer_id", _ID, nullable=False),
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("display_name", _text(128), nullable=False),
        sa.Column("email", _text(254), nullable=False),
        sa.Column("mobile", _text(64), nullable=False),
        sa.Column("mobile_raw", _text(64), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("customer_id", name="pk_customers"),
    )
    op.create_index("customers_tenant", "customers", ["tenant_id", "customer_id"])
    op.create_table(
        "customer_identities",
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("namespace", _NAME, nullable=False),
        sa.Column("value", _text(255), nullable=False),
        sa.Column("customer_id", _ID, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "namespace", "value", name="pk_customer_identities"),
    )
    op.create_index("customer_identities_customer", "customer_identities", ["customer_id"])
    op.create_table(
        "source_versions",
        sa.Column("customer_id", _ID, nullable=False),
        sa.Column("system", _NAME, nullable=False),
        sa.Column("writer", _NAME, nullable=False),
        sa.Column("version", _ascii(20), nullable=False),
        sa.PrimaryKeyConstraint("customer_id", "system", "writer", name="pk_source_versions"),
    )


def _access() -> None:
    """Tenants, agents and integration keys."""
    op.create_table(
        "tenants",
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("display_name", _text(128), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_tenants"),
    )
    op.create_index("tenants_disabled", "tenants", ["disabled"])
    op.create_table(
        "agents",
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("agent_id", _SUBJECT, nullable=False),
        sa.Column("display_name", _text(128), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("capacity", sa.Integer(), nullable=False),
        sa.Column("active", sa.Integer(), nullable=False),
        sa.Column("idle_since", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("bot", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("tenant_id", "agent_id", name="pk_agents"),
    )
    op.create_index("agents_disabled", "agents", ["disabled"])
    op.create_table(
        "integration_keys",
        sa.Column("key_id", _ID, nullable=False),
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("system_id", _NAME, nullable=False),
        sa.Column("display_name", _text(128), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("revoked", sa.Boolean(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", name="pk_integration_keys"),
    )
    op.create_index("integration_keys_tenant", "integration_keys", ["tenant_id", "key_id"])


def _search() -> None:
    """The index of messages' words, and how far it has got."""
    op.create_table(
        "message_search",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", _NAME, nullable=False),
        sa.Column("conversation_id", _ID, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("message_id", _ID, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_message_search"),
    )
    op.create_table(
        "search_positions",
        sa.Column("partition_id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("partition_id", name="pk_search_positions"),
    )
    for statement in _WORDS[op.get_bind().dialect.name]:
        op.execute(statement)


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


def _statistics() -> None:
    """How much of the messages PostgreSQL samples; other databases have no such setting."""
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    for table, sampled in _SAMPLED.items():
        for column in sa.inspect(connection).get_columns(table):
            name = column["name"]
            target = _SAMPLE_TARGET if name in sampled else 0
            op.execute(f'ALTER TABLE {table} ALTER COLUMN "{name}" SET STATISTICS {target}')
