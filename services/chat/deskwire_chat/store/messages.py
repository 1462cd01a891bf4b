"""The message log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import func, insert, select, tuple_, update
from sqlalchemy.exc import DataError
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_chat.domain.conversations import partition_of
from deskwire_chat.domain.messages import Kind, Message
from deskwire_chat.store import partitions
from deskwire_chat.store.partitions import Steps
from deskwire_chat.store.tables import messages
from deskwire_common.db import Statements, UnitOfWork, array, is_division_by_zero

SentKey = tuple[str, int, str, str]
"""Conversation, sender's role, sender, client_msg_id: a message with the same key is stored only once."""

_LOOKUP_CHUNK: Final = 200  # SQLite's limit on expression depth and parameters

_COLUMNS: Final = (
    "conversation_id, seq, message_id, tenant_id, sender_role, sender_id, sender_name, origin, "
    "client_msg_id, body, created_at, traceparent, partition_id, position, kind, target_seq, changed_at"
)
_ARRAYS: Final = (
    "%s::text[], %s::bigint[], %s::text[], %s::text[], %s::smallint[], %s::text[], %s::text[], %s::text[], "
    "%s::text[], %s::bytea[], %s::bigint[], %s::text[], %s::smallint[], %s::bigint[], %s::smallint[], %s::bigint[], "
    "%s::bigint[]"
)
_INSERT: Final = f"INSERT INTO messages ({_COLUMNS}) SELECT * FROM unnest({_ARRAYS}) AS m"  # noqa: S608
_INSERT_IMPORTED: Final = (
    f"INSERT INTO messages ({_COLUMNS}, imported) SELECT m.*, true FROM unnest({_ARRAYS}) AS m"  # noqa: S608
)
# Unless all heads were moved, a division by zero ends the statement and so rolls it back.
_APPEND_TO_LOG: Final = (
    f"WITH moved AS ({partitions.MOVE} RETURNING 1) {_INSERT} "  # noqa: S608
    "WHERE 1 / (CASE WHEN (SELECT count(*) FROM moved) = %s THEN 1 ELSE 0 END) = 1"
)


def as_message(row: Any) -> Message:
    """Return the message of a row of the table."""
    return Message(
        message_id=row.message_id,
        conversation_id=row.conversation_id,
        tenant=row.tenant_id,
        seq=row.seq,
        position=row.position,
        role=row.sender_role,
        subject=row.sender_id,
        name=row.sender_name,
        origin=row.origin,
        client_msg_id=row.client_msg_id,
        body=row.body,
        created_at=row.created_at,
        traceparent=row.traceparent,
        kind=row.kind,
        target_seq=row.target_seq,
        changed_at=row.changed_at,
        imported=bool(row.imported),
    )


async def append(uow: UnitOfWork, items: Sequence[Message]) -> None:
    """Insert messages that are about to be committed; any violation raises, nothing is ignored."""
    if uow.dialect == "postgresql":
        await uow.connection.exec_driver_sql(_INSERT, tuple(_arrays(items)))
        return
    await uow.execute(insert(messages), [_row(item) for item in items])


async def append_imported(uow: UnitOfWork, items: Sequence[Message]) -> None:
    """Insert messages of another system, as `append` does. Their mark keeps them from Kafka."""
    if uow.dialect == "postgresql":
        await uow.connection.exec_driver_sql(_INSERT_IMPORTED, tuple(_arrays(items)))
        return
    await uow.execute(insert(messages), [{**_row(item), "imported": True} for item in items])


def _row(item: Message) -> dict[str, Any]:
    return {
        "conversation_id": item.conversation_id,
        "seq": item.seq,
        "message_id": item.message_id,
        "tenant_id": item.tenant,
        "sender_role": item.role,
        "sender_id": item.subject,
        "sender_name": item.name,
        "origin": item.origin,
        "client_msg_id": item.client_msg_id,
        "body": item.body,
        "created_at": item.created_at,
        "traceparent": item.traceparent,
        "partition_id": partition_of(item.conversation_id),
        "position": item.position,
        "kind": int(item.kind),
        "target_seq": item.target_seq,
        "changed_at": item.changed_at,
    }


async def append_to_log(
    statements: Statements, items: Sequence[Message], steps: Steps, published: Mapping[int, int]
) -> bool:
    """Append messages and move the heads of their partitions, in one statement that commits itself; PostgreSQL only.

    Arguments, proof and result are those of `partitions.fence`: False means that nothing was written.
    """
    moves = [array(column) for column in partitions.moves(steps, published)]
    try:
        await statements.run(_APPEND_TO_LOG, [*moves, *_arrays(items), len(steps)])
    except DataError as error:
        if is_division_by_zero(error):
            return False
        raise
    return True


def _arrays(items: Sequence[Message]) -> list[str]:
    """Return the columns of messages as arrays."""
    return [
        array([m.conversation_id for m in items]),
        array([m.seq for m in items]),
        array([m.message_id for m in items]),
        array([m.tenant for m in items]),
        array([m.role for m in items]),
        array([m.subject for m in items]),
        array([m.name for m in items]),
        array([m.origin for m in items]),
        array([m.client_msg_id for m in items]),
        '{"\\\\x' + '","\\\\x'.join([m.body.hex() for m in items]) + '"}',
        array([m.created_at for m in items]),
        array([m.traceparent for m in items]),
        array([partition_of(m.conversation_id) for m in items]),
        array([m.position for m in items]),
        array([int(m.kind) for m in items]),
        array([m.target_seq for m in items]),
        array([m.changed_at for m in items]),
    ]


async def find_sent(c: AsyncConnection, keys: Sequence[SentKey]) -> dict[SentKey, Message]:
    """Return the stored messages that have one of `keys`, by key."""
    found: dict[SentKey, Message] = {}
    columns = messages.c
    for start in range(0, len(keys), _LOOKUP_CHUNK):
        chunk = keys[start : start + _LOOKUP_CHUNK]
        rows = await c.execute(
            select(messages).where(
                tuple_(
                    columns.conversation_id,
                    columns.sender_role,
                    columns.sender_id,
                    columns.client_msg_id,
                ).in_(chunk)
            )
        )
        for row in rows:
            item = as_message(row)
            found[item.conversation_id, item.role, item.subject, item.client_msg_id] = item
    return found


async def sent_keys(c: AsyncConnection, conversation_ids: Sequence[str]) -> list[SentKey]:
    """Return the keys of all messages of some conversations."""
    columns = messages.c
    rows = await c.execute(
        select(
            columns.conversation_id,
            columns.sender_role,
            columns.sender_id,
            columns.client_msg_id,
        ).where(columns.conversation_id.in_(conversation_ids))
    )
    return [(row[0], row[1], row[2], row[3]) for row in rows]


async def after_seq(
    c: AsyncConnection, conversation_id: str, *, seq: int, limit: int, max_bytes: int
) -> list[Message]:
    """Return a run of messages after `seq`, in order: up to `limit`, ending with the one that reaches `max_bytes`.

    The database adds up the sizes, so that messages beyond the run are never read: 1,000 long texts have 32 MB.
    """
    sizes = (
        select(messages.c.seq, func.length(messages.c.body).label("size"))
        .where(messages.c.conversation_id == conversation_id, messages.c.seq > seq)
        .order_by(messages.c.seq)
        .limit(limit)
        .subquery()
    )
    upto = func.sum(sizes.c.size).over(order_by=sizes.c.seq)
    run = select(sizes.c.seq, (upto - sizes.c.size).label("before")).subquery()
    rows = await c.execute(
        select(messages)
        .join(run, run.c.seq == messages.c.seq)
        .where(messages.c.conversation_id == conversation_id, run.c.before < max_bytes)
        .order_by(messages.c.seq)
    )
    return [as_message(row) for row in rows]


async def at(
    c: AsyncConnection, places: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], Message]:
    """Return the messages at (conversation, seq), by place."""
    columns = messages.c
    found: dict[tuple[str, int], Message] = {}
    for start in range(0, len(places), _LOOKUP_CHUNK):
        chunk = places[start : start + _LOOKUP_CHUNK]
        rows = await c.execute(
            select(messages).where(tuple_(columns.conversation_id, columns.seq).in_(chunk))
        )
        found.update({(row.conversation_id, row.seq): as_message(row) for row in rows})
    return found


async def log(
    c: AsyncConnection, partition: int, *, after: int, up_to: int, limit: int
) -> list[Message]:
    """Return a partition's log between two positions (`after` excluded, `up_to` included), in order."""
    columns = messages.c
    rows = await c.execute(
        select(messages)
        .where(
            columns.partition_id == partition,
            columns.position > after,
            columns.position <= up_to,
        )
        .order_by(columns.position)
        .limit(limit)
    )
    return [as_message(row) for row in rows]


async def change(uow: UnitOfWork, items: Sequence[Message]) -> None:
    """Write stored messages that an edit or a redaction changed."""
    for item in items:
        await uow.execute(
            update(messages)
            .where(messages.c.conversation_id == item.conversation_id, messages.c.seq == item.seq)
            .values(body=item.body, kind=int(item.kind), changed_at=item.changed_at)
        )


async def wipe_edits(uow: UnitOfWork, target: Message) -> None:
    """Wipe the stored edits of a message that was redacted."""
    await uow.execute(
        update(messages)
        .where(
            messages.c.conversation_id == target.conversation_id,
            messages.c.target_seq == target.seq,
            messages.c.kind == int(Kind.EDIT),
        )
        .values(body=target.body, kind=int(Kind.REDACTED), changed_at=target.changed_at)
    )
