"""Where imported conversations come from, and which of their messages are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_chat.domain.history import Provenance
from deskwire_chat.domain.messages import Message
from deskwire_chat.store.messages import as_message
from deskwire_chat.store.tables import imported_conversations, messages

_CHUNK: Final = 500


async def came_from(c: AsyncConnection, conversation_id: str) -> Provenance | None:
    """Return where a conversation comes from; None: it wasn't imported, or there is none."""
    columns = imported_conversations.c
    row = (
        await c.execute(
            select(columns.source, columns.external_id).where(
                columns.conversation_id == conversation_id
            )
        )
    ).first()
    return None if row is None else Provenance(row.source, row.external_id)


async def add(
    c: AsyncConnection, conversation_id: str, tenant: str, came_from: Provenance, *, now: int
) -> None:
    """Note where a conversation comes from; raises when that is noted already."""
    await c.execute(
        insert(imported_conversations).values(
            conversation_id=conversation_id,
            tenant_id=tenant,
            source=came_from.source,
            external_id=came_from.external_id,
            imported_at=now,
        )
    )


async def known(
    c: AsyncConnection, conversation_id: str, external_ids: Sequence[str]
) -> dict[str, Message]:
    """Return the messages of a conversation that are stored, by the ids that they had in the other system."""
    found: dict[str, Message] = {}
    columns = messages.c
    for start in range(0, len(external_ids), _CHUNK):
        chunk = external_ids[start : start + _CHUNK]
        rows = await c.execute(
            select(messages).where(
                columns.conversation_id == conversation_id, columns.client_msg_id.in_(chunk)
            )
        )
        found.update({row.client_msg_id: as_message(row) for row in rows})
    return found
