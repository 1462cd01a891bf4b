"""The records of attachments; their bytes are in an AttachmentStore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Row, Select, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_chat.domain.actors import Actor
from deskwire_chat.domain.attachments import Attachment, AttachmentState
from deskwire_chat.store.tables import attachments
from deskwire_common.db import UnitOfWork

_CHUNK: Final = 200  # SQLite's limit on parameters


def _attachment(row: Row[Any]) -> Attachment:
    return Attachment(
        attachment_id=row.attachment_id,
        tenant=row.tenant_id,
        conversation_id=row.conversation_id,
        uploader_role=row.uploader_role,
        uploader_id=row.uploader_id,
        uploader_name=row.uploader_name,
        file_name=row.file_name,
        content_type=row.content_type,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        state=AttachmentState(row.state),
        seq=row.seq,
        created_at=row.created_at,
        remove_at=row.remove_at,
    )


async def add(c: AsyncConnection, item: Attachment) -> None:
    """Insert a new attachment."""
    await c.execute(
        insert(attachments).values(
            attachment_id=item.attachment_id,
            tenant_id=item.tenant,
            conversation_id=item.conversation_id,
            uploader_role=item.uploader_role,
            uploader_id=item.uploader_id,
            uploader_name=item.uploader_name,
            file_name=item.file_name,
            content_type=item.content_type,
            size_bytes=item.size_bytes,
            sha256=item.sha256,
            state=int(item.state),
            seq=item.seq,
            created_at=item.created_at,
            remove_at=item.remove_at,
        )
    )


async def get(c: AsyncConnection, tenant: str, attachment_id: str) -> Attachment | None:
    """Return an attachment of a tenant."""
    return await _one(c, _of(tenant, attachment_id))


async def lock(c: AsyncConnection, tenant: str, attachment_id: str) -> Attachment | None:
    """Return an attachment of a tenant, locked until the transaction ends."""
    return await _one(c, _of(tenant, attachment_id).with_for_update())


def _of(tenant: str, attachment_id: str) -> Select[Any]:
    return select(attachments).where(
        attachments.c.attachment_id == attachment_id, attachments.c.tenant_id == tenant
    )


async def _one(c: AsyncConnection, statement: Select[Any]) -> Attachment | None:
    row = (await c.execute(statement)).first()
    return None if row is None else _attachment(row)


async def get_many(c: AsyncConnection, ids: Sequence[str]) -> dict[str, Attachment]:
    """Return the attachments that exist, of any tenant: the writer checks the tenant."""
    found: dict[str, Attachment] = {}
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        rows = await c.execute(select(attachments).where(attachments.c.attachment_id.in_(chunk)))
        found.update((row.attachment_id, _attachment(row)) for row in rows)
    return found


async def count_unsent(c: AsyncConnection, who: Actor) -> int:
    """Return how many of a user's attachments no message carries yet."""
    columns = attachments.c
    found = await c.execute(
        select(func.count())
        .select_from(attachments)
        .where(
            columns.tenant_id == who.tenant,
            columns.uploader_id == who.subject,
            columns.state < int(AttachmentState.SENT),
            columns.uploader_role == int(who.role),
        )
    )
    return int(found.scalar_one())


async def ready(c: AsyncConnection, item: Attachment) -> None:
    """Mark that the bytes are stored; this transaction has locked the row."""
    await c.execute(
        update(attachments)
        .where(attachments.c.attachment_id == item.attachment_id)
        .values(state=int(AttachmentState.READY))
    )


async def sent(uow: UnitOfWork, items: Sequence[Attachment]) -> bool:
    """Mark attachments that messages carry; False when one isn't READY any more."""
    for item in items:
        done = await uow.execute(
            update(attachments)
            .where(
                attachments.c.attachment_id == item.attachment_id,
                attachments.c.state == int(AttachmentState.READY),
            )
            .values(state=int(item.state), seq=item.seq, remove_at=item.remove_at)
        )
        if done.rowcount != 1:
            return False
    return True


async def discard(uow: UnitOfWork, places: Sequence[tuple[str, int]], *, now: int) -> None:
    """Mark the attachments of the messages at (conversation, seq) for removal."""
    for conversation_id, seq in places:
        await uow.execute(
            update(attachments)
            .where(
                attachments.c.conversation_id == conversation_id,
                attachments.c.seq == seq,
                attachments.c.state == int(AttachmentState.SENT),
            )
            .values(state=int(AttachmentState.REMOVED), remove_at=now)
        )


async def due(c: AsyncConnection, *, now: int, limit: int) -> list[Attachment]:
    """Return attachments whose object is to be removed, the oldest first."""
    columns = attachments.c
    rows = await c.execute(
        select(attachments)
        .where(columns.remove_at > 0, columns.remove_at <= now)
        .order_by(columns.remove_at)
        .limit(limit)
    )
    return [_attachment(row) for row in rows]


async def claim(uow: UnitOfWork, item: Attachment) -> bool:
    """Mark an attachment of `due` as REMOVED, so that no message can carry it; False when one does."""
    done = await uow.execute(
        update(attachments)
        .where(
            attachments.c.attachment_id == item.attachment_id,
            attachments.c.remove_at == item.remove_at,
        )
        .values(state=int(AttachmentState.REMOVED))
    )
    return bool(done.rowcount == 1)


async def forget(uow: UnitOfWork, ids: Sequence[str]) -> None:
    """Remove the rows of attachments whose objects are gone."""
    await uow.execute(delete(attachments).where(attachments.c.attachment_id.in_(ids)))
