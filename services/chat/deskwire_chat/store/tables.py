"""Tables of chat. Ids are text, times are microseconds UTC; the rows are the same on all three dialects."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    UniqueConstraint,
    false,
    text,
)

from deskwire_common import db
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.outbox import Outbox
from deskwire_common.ownership import members_table, slots_table

metadata: Final = db.metadata()

partitions = Table(
    "partitions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("term", BigInteger, nullable=False),
    Column("owner", db.binary_text(128), nullable=False),
    Column("head", BigInteger, nullable=False),
    Column("published", BigInteger, nullable=False),
)

members: Final = members_table(metadata)
slots: Final = slots_table(metadata)

conversations = Table(
    "conversations",
    metadata,
    Column("conversation_id", db.Id, primary_key=True),
    Column("tenant_id", db.Name, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("customer_id", db.Id, nullable=False),
    Column("visitor_id", db.Subject, nullable=False),
    Column("agent_id", db.Subject, nullable=False),
    Column("epoch", db.UInt32, nullable=False),
    Column("version", db.UInt32, nullable=False),
    Column("created_at", db.Micros, nullable=False),
    Column("assigned_at", db.Micros, nullable=False),
    Column("closed_at", db.Micros, nullable=False),
    Column("traceparent", db.ascii_text(64), nullable=False),
    Column("agent_is_bot", Boolean, nullable=False, server_default=false()),
    Column("human_wanted", Boolean, nullable=False, server_default=false()),
    Index("conversations_newest", "tenant_id", "created_at", "conversation_id"),
    Index("conversations_visitor", "tenant_id", "visitor_id", "state"),
    Index(
        "conversations_visitor_newest", "tenant_id", "visitor_id", "created_at", "conversation_id"
    ),
    Index("conversations_agent", "tenant_id", "agent_id", "state"),
    Index("conversations_customer", "tenant_id", "customer_id", "state"),
    Index("conversations_queue", "state", "created_at", "conversation_id"),
)

messages = Table(
    "messages",
    metadata,
    Column("conversation_id", db.Id, primary_key=True),
    Column("seq", db.UInt32, primary_key=True, autoincrement=False),
    Column("message_id", db.Id, nullable=False),
    Column("tenant_id", db.Name, nullable=False),
    Column("sender_role", SmallInteger, nullable=False),
    Column("sender_id", db.Subject, nullable=False),
    Column("sender_name", db.binary_text(128), nullable=False),
    Column("origin", db.Name, nullable=False),
    Column("client_msg_id", db.binary_text(64), nullable=False),
    Column("body", db.Blob, nullable=False),
    Column("created_at", db.Micros, nullable=False),
    Column("traceparent", db.ascii_text(64), nullable=False),
    Column("partition_id", SmallInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("kind", SmallInteger, nullable=False, server_default=text("1")),
    Column("target_seq", db.UInt32, nullable=False, server_default=text("0")),
    Column("changed_at", db.Micros, nullable=False, server_default=text("0")),
    Column("imported", Boolean, nullable=False, server_default=false()),
    UniqueConstraint(
        "conversation_id", "sender_role", "sender_id", "client_msg_id", name="messages_sent_once"
    ),
    UniqueConstraint("partition_id", "position", name="messages_log"),
)

imported_conversations = Table(
    "imported_conversations",
    metadata,
    Column("conversation_id", db.Id, primary_key=True),
    Column("tenant_id", db.Name, nullable=False),
    Column("source", db.Name, nullable=False),
    Column("external_id", db.binary_text(128), nullable=False),
    Column("imported_at", db.Micros, nullable=False),
)

receipts = Table(
    "receipts",
    metadata,
    Column("conversation_id", db.Id, primary_key=True),
    Column("role", SmallInteger, primary_key=True, autoincrement=False),
    Column("subject", db.Subject, primary_key=True),
    Column("delivered_seq", db.UInt32, nullable=False),
    Column("read_seq", db.UInt32, nullable=False),
    Column("updated_at", db.Micros, nullable=False),
)

attachments = Table(
    "attachments",
    metadata,
    Column("attachment_id", db.Id, primary_key=True),
    Column("tenant_id", db.Name, nullable=False),
    Column("conversation_id", db.Id, nullable=False),
    Column("uploader_role", SmallInteger, nullable=False),
    Column("uploader_id", db.Subject, nullable=False),
    Column("uploader_name", db.binary_text(128), nullable=False),
    Column("file_name", db.binary_text(255), nullable=False),
    Column("content_type", db.ascii_text(127), nullable=False),
    Column("size_bytes", db.UInt32, nullable=False),
    Column("sha256", db.ascii_text(64), nullable=False),
    Column("state", SmallInteger, nullable=False),
    # The seq of the message that carries it; 0: none.
    Column("seq", db.UInt32, nullable=False),
    Column("created_at", db.Micros, nullable=False),
    # When its object is to be removed; 0: never.
    Column("remove_at", db.Micros, nullable=False),
    Index("attachments_due", "remove_at"),
    Index("attachments_unsent", "tenant_id", "uploader_id", "state"),
    Index("attachments_message", "conversation_id", "seq"),
)

customers = Table(
    "customers",
    metadata,
    Column("customer_id", db.Id, primary_key=True),
    Column("tenant_id", db.Name, nullable=False),
    Column("display_name", db.binary_text(128), nullable=False),
    Column("email", db.binary_text(254), nullable=False),
    # The number in the form by which numbers are compared, and as it was given.
    Column("mobile", db.binary_text(64), nullable=False),
    Column("mobile_raw", db.binary_text(64), nullable=False),
    Column("version", db.UInt32, nullable=False),
    Column("created_at", db.Micros, nullable=False),
    Column("updated_at", db.Micros, nullable=False),
    Index("customers_tenant", "tenant_id", "customer_id"),
)

customer_identities = Table(
    "customer_identities",
    metadata,
    Column("tenant_id", db.Name, primary_key=True),
    Column("namespace", db.Name, primary_key=True),
    Column("value", db.binary_text(255), primary_key=True),
    Column("customer_id", db.Id, nullable=False),
    Index("customer_identities_customer", "customer_id"),
)

source_versions = Table(
    "source_versions",
    metadata,
    Column("customer_id", db.Id, primary_key=True),
    Column("system", db.Name, primary_key=True),
    Column("writer", db.Name, primary_key=True),
    # 20 decimal digits with leading zeros: uint64 is larger than any integer column that all dialects have.
    Column("version", db.ascii_text(20), nullable=False),
)

agents = Table(
    "agents",
    metadata,
    Column("tenant_id", db.Name, primary_key=True),
    Column("agent_id", db.Subject, primary_key=True),
    Column("display_name", db.binary_text(128), nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("capacity", Integer, nullable=False),
    Column("active", Integer, nullable=False),
    Column("idle_since", db.Micros, nullable=False),
    Column("version", db.UInt32, nullable=False),
    Column("disabled", Boolean, nullable=False, server_default=false()),
    Column("bot", Boolean, nullable=False, server_default=false()),
    Index("agents_disabled", "disabled"),
)

tenants = Table(
    "tenants",
    metadata,
    Column("tenant_id", db.Name, primary_key=True),
    Column("display_name", db.binary_text(128), nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("version", db.UInt32, nullable=False),
    Column("created_at", db.Micros, nullable=False),
    Column("updated_at", db.Micros, nullable=False),
    Index("tenants_disabled", "disabled"),
)

integration_keys = Table(
    "integration_keys",
    metadata,
    Column("key_id", db.Id, primary_key=True),
    Column("tenant_id", db.Name, nullable=False),
    Column("system_id", db.Name, nullable=False),
    Column("display_name", db.binary_text(128), nullable=False),
    Column("secret_hash", LargeBinary(32), nullable=False),
    Column("revoked", Boolean, nullable=False),
    Column("version", db.UInt32, nullable=False),
    Column("created_at", db.Micros, nullable=False),
    Column("updated_at", db.Micros, nullable=False),
    Index("integration_keys_tenant", "tenant_id", "key_id"),
)

outbox: Final = Outbox(metadata)
idempotency: Final = IdempotencyStore(metadata)
