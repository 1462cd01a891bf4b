"""Conversations. Their head comes from the log: storing a message doesn't write the conversation's row."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Row, Select, and_, false, func, insert, select, true, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_chat.domain.actors import ActorRole, UserKey
from deskwire_chat.domain.conversations import Conversation, State
from deskwire_chat.domain.openings import Opened
from deskwire_chat.domain.work import WorkItem, waiting_conversation
from deskwire_chat.store.tables import agents, conversations, messages

MOST_OPEN: Final = 100
"""Of a visitor with more open conversations, these many are told when they connect; ListConversations has all."""

_head = (
    select(func.max(messages.c.seq))
    .where(messages.c.conversation_id == conversations.c.conversation_id)
    .correlate(conversations)
    .scalar_subquery()
    .label("head_seq")
)
_COLUMNS = (*conversations.c, _head)


def _conversation(row: Row[Any]) -> Conversation:
    return Conversation(
        conversation_id=row.conversation_id,
        tenant=row.tenant_id,
        state=State(row.state),
        customer_id=row.customer_id,
        visitor_id=row.visitor_id,
        agent_id=row.agent_id,
        epoch=row.epoch,
        head_seq=row.head_seq or 0,
        version=row.version,
        created_at=row.created_at,
        assigned_at=row.assigned_at,
        closed_at=row.closed_at,
        traceparent=row.traceparent,
        agent_is_bot=row.agent_is_bot,
        human_wanted=row.human_wanted,
    )


async def _all(c: AsyncConnection, statement: Select[Any]) -> list[Conversation]:
    return [_conversation(row) for row in await c.execute(statement)]


async def get_many(c: AsyncConnection, ids: Sequence[str]) -> list[Conversation]:
    """Return the conversations that exist, of any tenant: the writer checks the tenant."""
    return await _all(c, select(*_COLUMNS).where(conversations.c.conversation_id.in_(ids)))


async def get(c: AsyncConnection, tenant: str, conversation_id: str) -> Conversation | None:
    """Return a conversation of a tenant."""
    found = await _all(
        c,
        select(*_COLUMNS).where(
            conversations.c.conversation_id == conversation_id, conversations.c.tenant_id == tenant
        ),
    )
    return found[0] if found else None


async def page(
    c: AsyncConnection,
    tenant: str,
    *,
    states: Sequence[State],
    agent_id: str,
    customer_id: str,
    visitor_id: str,
    before: tuple[int, str] | None,
    limit: int,
) -> list[Conversation]:
    """Return conversations newest first, from before (created_at, id); empty filters select all."""
    columns = conversations.c
    statement = select(*_COLUMNS).where(columns.tenant_id == tenant)
    if states:
        statement = statement.where(columns.state.in_([int(state) for state in states]))
    if agent_id:
        statement = statement.where(columns.agent_id == agent_id)
    if customer_id:
        statement = statement.where(columns.customer_id == customer_id)
    if visitor_id:
        statement = statement.where(columns.visitor_id == visitor_id)
    if before is not None:
        statement = statement.where(tuple_(columns.created_at, columns.conversation_id) < before)
    return await _all(
        c,
        statement.order_by(columns.created_at.desc(), columns.conversation_id.desc()).limit(limit),
    )


async def open_of(
    c: AsyncConnection, tenant: str, role: ActorRole, subjects: Sequence[str]
) -> dict[str, list[Conversation]]:
    """Return the open conversations in which some users take part, by user: of a visitor the newest MOST_OPEN.

    What an agent or a bot has is bounded by their capacity.
    """
    columns = conversations.c
    ours = columns.tenant_id == tenant
    if role == ActorRole.VISITOR:
        place = func.row_number().over(
            partition_by=columns.visitor_id,
            order_by=(columns.created_at.desc(), columns.conversation_id),
        )
        newest = (
            select(columns.conversation_id, place.label("place"))
            .where(
                ours,
                columns.visitor_id.in_(subjects),
                columns.state.in_([int(State.QUEUED), int(State.ACTIVE)]),
            )
            .subquery()
        )
        statement = (
            select(*_COLUMNS)
            .join(newest, newest.c.conversation_id == columns.conversation_id)
            .where(newest.c.place <= MOST_OPEN)
        )
    elif role in {ActorRole.AGENT, ActorRole.BOT}:
        statement = select(*_COLUMNS).where(
            ours,
            columns.agent_id.in_(subjects),
            columns.state == int(State.ACTIVE),
            columns.agent_is_bot == (true() if role == ActorRole.BOT else false()),
        )
    else:
        return {}
    found: dict[str, list[Conversation]] = {}
    for item in await _all(c, statement):
        user = item.visitor_id if role == ActorRole.VISITOR else item.agent_id
        found.setdefault(user, []).append(item)
    return found


async def waiting(c: AsyncConnection, tenants: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return by tenant how many conversations wait, and when the oldest was opened; leave out tenants without any."""
    columns = conversations.c
    rows = await c.execute(
        select(columns.tenant_id, func.count(), func.min(columns.created_at))
        .where(columns.state == int(State.QUEUED), columns.tenant_id.in_(tenants))
        .group_by(columns.tenant_id)
    )
    return {row[0]: (row[1], row[2]) for row in rows}


async def agents_of_customers(
    c: AsyncConnection, tenant: str, customer_ids: Collection[str]
) -> dict[str, list[UserKey]]:
    """Return the agents and bots that have an open conversation of some customers, by customer."""
    columns = conversations.c
    rows = await c.execute(
        select(columns.customer_id, columns.agent_id, columns.agent_is_bot)
        .where(
            columns.tenant_id == tenant,
            columns.customer_id.in_(customer_ids),
            columns.state == int(State.ACTIVE),
        )
        .distinct()
    )
    found: dict[str, list[UserKey]] = {}
    for row in rows:
        role = ActorRole.BOT if row.agent_is_bot else ActorRole.AGENT
        found.setdefault(row.customer_id, []).append((tenant, int(role), row.agent_id))
    return found


class HeldConversation(NamedTuple):
    """A conversation that an agent or a bot has, since `assigned_at` (microseconds)."""

    conversation_id: str
    tenant: str
    agent_id: str
    bot: bool
    assigned_at: int


async def of_agents(c: AsyncConnection, keys: Sequence[tuple[str, str]]) -> list[HeldConversation]:
    """Return all conversations that some agents and bots (tenant, agent_id) have, oldest first."""
    columns = conversations.c
    rows = await c.execute(
        select(
            columns.conversation_id,
            columns.tenant_id,
            columns.agent_id,
            columns.agent_is_bot,
            columns.assigned_at,
        )
        .where(
            tuple_(columns.tenant_id, columns.agent_id).in_(keys),
            columns.state == int(State.ACTIVE),
        )
        .order_by(columns.created_at, columns.conversation_id)
    )
    return [HeldConversation(*row) for row in rows]


async def of_disabled_agents(c: AsyncConnection) -> list[tuple[str, str]]:
    """Return (conversation, agent_id) of all conversations that a disabled agent has."""
    columns = conversations.c
    rows = await c.execute(
        select(columns.conversation_id, columns.agent_id)
        .join(
            agents,
            and_(agents.c.tenant_id == columns.tenant_id, agents.c.agent_id == columns.agent_id),
        )
        .where(agents.c.disabled == true(), columns.state == int(State.ACTIVE))
        .order_by(columns.created_at, columns.conversation_id)
    )
    return [(row.conversation_id, row.agent_id) for row in rows]


async def queued(c: AsyncConnection) -> list[WorkItem]:
    """Return the work items of all conversations that wait, oldest first."""
    columns, other = conversations.c, conversations.alias("other")
    knowing = await c.execute(
        select(columns.conversation_id, other.c.agent_id)
        .join(
            other,
            and_(
                other.c.tenant_id == columns.tenant_id,
                other.c.customer_id == columns.customer_id,
                other.c.state == int(State.ACTIVE),
            ),
        )
        .where(columns.state == int(State.QUEUED))
        .distinct()
    )
    known_to: dict[str, set[str]] = {}
    for conversation_id, agent_id in knowing:
        known_to.setdefault(conversation_id, set()).add(agent_id)
    rows = await c.execute(
        select(
            columns.tenant_id,
            columns.conversation_id,
            columns.created_at,
            columns.human_wanted,
            columns.customer_id,
        )
        .where(columns.state == int(State.QUEUED))
        .order_by(columns.created_at, columns.conversation_id)
    )
    return [
        waiting_conversation(
            row[0],
            row[1],
            row[2],
            human_wanted=bool(row[3]),
            customer_id=row[4],
            known_to=frozenset(known_to.get(row[1], ())),
        )
        for row in rows
    ]


async def opened_by(
    c: AsyncConnection, tenant: str, visitors: Collection[str], *, since: int | None
) -> dict[str, Opened]:
    """Return how many conversations some visitors have open, and when they opened any after `since` (microseconds).

    None: leave the times out.
    """
    columns = conversations.c
    theirs = (columns.tenant_id == tenant, columns.visitor_id.in_(visitors))
    found = {each: Opened(0, []) for each in visitors}
    counts = await c.execute(
        select(columns.visitor_id, func.count())
        .where(*theirs, columns.state.in_([int(State.QUEUED), int(State.ACTIVE)]))
        .group_by(columns.visitor_id)
    )
    for visitor, count in counts:
        found[visitor].open = count
    if since is not None:
        times = await c.execute(
            select(columns.visitor_id, columns.created_at).where(
                *theirs, columns.created_at > since
            )
        )
        for visitor, created_at in times:
            found[visitor].times.append(created_at)
    return found


async def add(c: AsyncConnection, items: Sequence[Conversation]) -> None:
    """Insert new conversations; raises when one exists."""
    await c.execute(
        insert(conversations),
        [
            {
                "conversation_id": item.conversation_id,
                "tenant_id": item.tenant,
                "state": int(item.state),
                "customer_id": item.customer_id,
                "visitor_id": item.visitor_id,
                "agent_id": item.agent_id,
                "epoch": item.epoch,
                "version": item.version,
                "created_at": item.created_at,
                "assigned_at": item.assigned_at,
                "closed_at": item.closed_at,
                "traceparent": item.traceparent,
                "agent_is_bot": item.agent_is_bot,
                "human_wanted": item.human_wanted,
            }
            for item in items
        ],
    )


async def save(c: AsyncConnection, item: Conversation, *, old_version: int) -> bool:
    """Write what can change of a conversation; False when its version isn't `old_version` any more."""
    result = await c.execute(
        update(conversations)
        .where(
            conversations.c.conversation_id == item.conversation_id,
            conversations.c.version == old_version,
        )
        .values(
            state=int(item.state),
            agent_id=item.agent_id,
            agent_is_bot=item.agent_is_bot,
            human_wanted=item.human_wanted,
            version=item.version,
            assigned_at=item.assigned_at,
            closed_at=item.closed_at,
        )
    )
    return bool(result.rowcount == 1)
