"""Receipts: how far each user has got in a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Row, func, select, tuple_
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_chat.domain.messages import Receipt
from deskwire_chat.store.tables import receipts
from deskwire_common.db import UnitOfWork

_MOST: Final = 200  # everybody who ever took part has one: many transfers make many receipts
_KEYS = ("conversation_id", "role", "subject")


def _receipt(row: Row[Any]) -> Receipt:
    return Receipt(row.conversation_id, row.role, row.subject, row.delivered_seq, row.read_seq)


async def of_conversation(c: AsyncConnection, conversation_id: str) -> list[Receipt]:
    """Return the receipts of a conversation; if there are very many, only those that moved last."""
    rows = await c.execute(
        select(receipts)
        .where(receipts.c.conversation_id == conversation_id)
        .order_by(receipts.c.updated_at.desc())
        .limit(_MOST)
    )
    return [_receipt(row) for row in sorted(rows, key=lambda row: (row.role, row.subject))]


async def raise_to(uow: UnitOfWork, items: Sequence[Receipt], *, now: int) -> list[Receipt]:
    """Move receipts forward, never back; return them as they are now."""
    # In a fixed order, so that two writers can't deadlock.
    rows = sorted(
        (
            {
                "conversation_id": each.conversation_id,
                "role": each.role,
                "subject": each.subject,
                "delivered_seq": each.delivered_seq,
                "read_seq": each.read_seq,
                "updated_at": now,
            }
            for each in items
        ),
        key=lambda row: (row["conversation_id"], row["role"], row["subject"]),
    )
    columns = receipts.c
    statement: Any
    if uow.dialect == "mysql":
        inserting = mysql.insert(receipts)
        new: Any = inserting.inserted
        statement = inserting.on_duplicate_key_update(
            delivered_seq=func.greatest(columns.delivered_seq, new.delivered_seq),
            read_seq=func.greatest(columns.read_seq, new.read_seq),
            updated_at=new.updated_at,
        )
    else:
        larger = func.greatest if uow.dialect == "postgresql" else func.max
        flavour: Any = postgresql.insert if uow.dialect == "postgresql" else sqlite.insert
        upserting = flavour(receipts)
        new = upserting.excluded
        statement = upserting.on_conflict_do_update(
            index_elements=list(_KEYS),
            set_={
                "delivered_seq": larger(columns.delivered_seq, new.delivered_seq),
                "read_seq": larger(columns.read_seq, new.read_seq),
                "updated_at": new.updated_at,
            },
        )
    await uow.execute(statement, rows)
    keys = [tuple(row[name] for name in _KEYS) for row in rows]
    found = await uow.execute(
        select(receipts).where(
            tuple_(columns.conversation_id, columns.role, columns.subject).in_(keys)
        )
    )
    return [_receipt(row) for row in found]
