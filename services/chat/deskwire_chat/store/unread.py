"""How many messages of a conversation somebody hasn't read, counted from the log and their receipt.

Nothing is written for it when a message is stored. What is counted are the texts and files of others after the last
message that the reader has read; not what was redacted or imported, and no notes, edits and redactions. To the desk,
what deskwire says in an agent's name (the greeting) is no message of somebody else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import Select, false, func, literal, select, tuple_, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_chat.domain.actors import Actor, ActorRole
from deskwire_chat.domain.conversations import Conversation, takes_part
from deskwire_chat.domain.messages import Kind
from deskwire_chat.store.tables import messages, receipts

WINDOW: Final = 1_000
"""Only the last so many entries of a conversation are looked at."""
_KINDS: Final = (int(Kind.TEXT), int(Kind.ATTACHMENT))
_READERS: Final = 200
_COUNTS: Final = 50


class Reader(NamedTuple):
    """Somebody who takes part in a conversation, whose last seq is `head`."""

    conversation_id: str
    role: int
    subject: str
    head: int


async def unread(c: AsyncConnection, readers: Sequence[Reader]) -> dict[Reader, int]:
    """Return how many messages up to `head` each reader hasn't read; it costs little where all is read."""
    found = dict.fromkeys(readers, 0)
    behind: list[tuple[Reader, int]] = []
    for start in range(0, len(readers), _READERS):
        behind += await _behind(c, readers[start : start + _READERS])
    for start in range(0, len(behind), _COUNTS):
        some = behind[start : start + _COUNTS]
        counts = [_count(place, *each) for place, each in enumerate(some)]
        for row in await c.execute(union_all(*counts)):
            found[some[row[0]][0]] = row[1]
    return found


async def unread_by(c: AsyncConnection, item: Conversation, who: Actor) -> int:
    """Return how much of a conversation, up to its head, `who` hasn't read; 0 for who doesn't take part."""
    if not takes_part(item, who):
        return 0
    reader = Reader(item.conversation_id, int(who.role), who.subject, item.head_seq)
    return (await unread(c, [reader]))[reader]


async def _behind(c: AsyncConnection, readers: Sequence[Reader]) -> list[tuple[Reader, int]]:
    """Return the readers who haven't read everything, and the seq after which to count."""
    columns = receipts.c
    rows = await c.execute(
        select(columns.conversation_id, columns.role, columns.subject, columns.read_seq).where(
            tuple_(columns.conversation_id, columns.role, columns.subject).in_(
                [each[:3] for each in readers]
            )
        )
    )
    read = {(row[0], row[1], row[2]): row[3] for row in rows}
    after = [(each, max(read.get(each[:3], 0), each.head - WINDOW)) for each in readers]
    return [(each, seq) for each, seq in after if seq < each.head]


def _count(place: int, reader: Reader, after: int) -> Select[int, int]:
    columns = messages.c
    if reader.role == ActorRole.VISITOR:
        others = columns.sender_role != int(ActorRole.VISITOR)
    else:
        own = (columns.sender_role == reader.role) & (columns.sender_id == reader.subject)
        others = (columns.sender_role != int(ActorRole.SYSTEM)) & ~own
    return select(literal(place), func.count()).where(
        columns.conversation_id == reader.conversation_id,
        columns.seq > after,
        columns.seq <= reader.head,
        columns.kind.in_(_KINDS),
        columns.imported == false(),
        others,
    )
