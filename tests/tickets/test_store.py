"""The ticket store on every database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from deskwire_common.db import Database, UnitOfWork
from deskwire_common.ids import RandomIds
from deskwire_common.migrations import check_schema, migrate
from deskwire_tickets import domain
from deskwire_tickets.domain import Actor, Change, Ticket, TicketPriority, TicketState
from deskwire_tickets.store import audit, tickets
from deskwire_tickets.store.tickets import TicketFilter

IDS = RandomIds()
NOW = 1_767_268_800_123_456
BY = Actor(role=2, subject="alice", name="Алиса 🙂", origin="crm:main")


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url, "deskwire_tickets")
    database = await Database.open(database_url)
    await check_schema(database, "deskwire_tickets")
    yield database
    await database.close()


async def create(db: Database, tenant: str = "demo", **fields: str) -> Ticket:
    async def work(uow: UnitOfWork) -> Change:
        change = domain.create(
            tenant=tenant,
            ticket_id=IDS.uuid7(),
            number=await tickets.next_number(uow, tenant),
            subject=fields.get("subject", "Посылка \U0001f4e6 'late'"),
            description="line\nline",
            priority=TicketPriority.HIGH,
            conversation_id=fields.get("conversation_id", IDS.uuid7()),
            customer_id=fields.get("customer_id", IDS.uuid7()),
            by=BY,
            now=NOW,
        )
        await tickets.add(uow, change.after)
        await audit.add(uow, change)
        return change

    return (await db.run(work)).after


async def solve(db: Database, ticket: Ticket) -> Ticket:
    async def work(uow: UnitOfWork) -> Change:
        found = await tickets.lock(uow, ticket.tenant, ticket.ticket_id)
        assert found is not None
        change = domain.solve(found, resolution="Sent.", expected_version=0, by=BY, now=NOW)
        await tickets.save(uow, change)
        await audit.add(uow, change)
        return change

    return (await db.run(work)).after


async def test_a_ticket_is_read_as_it_was_written(db: Database) -> None:
    ticket = await create(db)
    async with db.read() as connection:
        assert await tickets.get(connection, "demo", ticket.ticket_id) == ticket
        assert await tickets.get(connection, "other", ticket.ticket_id) is None
    solved = await solve(db, ticket)
    async with db.read() as connection:
        assert await tickets.get(connection, "demo", ticket.ticket_id) == solved
        entries = await audit.page(connection, "demo", ticket.ticket_id, after=0, limit=10)
        none = await audit.page(connection, "other", ticket.ticket_id, after=0, limit=10)
    assert [entry.version for entry in entries] == [1, 2]
    assert [entry.to_state for entry in entries] == [TicketState.OPEN, TicketState.SOLVED]
    assert entries[1].note == "Sent."
    assert entries[0].by == BY
    assert none == []


async def test_numbers_have_no_holes_under_concurrency(db: Database) -> None:
    made = await asyncio.gather(*(create(db, f"t{index % 2}") for index in range(20)))
    for tenant in ("t0", "t1"):
        numbers = sorted(ticket.number for ticket in made if ticket.tenant == tenant)
        assert numbers == list(range(1, 11))


async def test_a_rolled_back_number_is_given_again(db: Database) -> None:
    async with db.transaction() as uow:
        assert await tickets.next_number(uow, "demo") == 1
    assert (await create(db)).number == 1


async def test_lists_are_filtered_and_newest_first(db: Database) -> None:
    conversation, customer = IDS.uuid7(), IDS.uuid7()
    one = await create(db, conversation_id=conversation)
    two = await create(db, customer_id=customer)
    three = await solve(db, await create(db))
    await create(db, "other", conversation_id=conversation)

    async def found(below: int | None = None, limit: int = 10, **wanted: object) -> list[int]:
        async with db.read() as connection:
            listed = await tickets.page(
                connection,
                "demo",
                TicketFilter(**wanted),  # type: ignore[arg-type]
                below=below,
                limit=limit,
            )
        return [ticket.number for ticket in listed]

    assert await found() == [three.number, two.number, one.number]
    assert await found(limit=2) == [three.number, two.number]
    assert await found(below=two.number) == [one.number]
    assert await found(conversation_id=conversation) == [one.number]
    assert await found(customer_id=customer) == [two.number]
    assert await found(states=[TicketState.SOLVED]) == [three.number]
    assert await found(assignee_id="alice", states=[TicketState.OPEN]) == [two.number, one.number]
    assert await found(assignee_id="ALICE") == []


async def test_two_changes_of_one_version_are_one(db: Database) -> None:
    ticket = await create(db)
    results = await asyncio.gather(*(solve(db, ticket) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(result, Ticket) for result in results) == 1
    async with db.read() as connection:
        after = await tickets.get(connection, "demo", ticket.ticket_id)
    assert after is not None
    assert after.version == 2
