"""TicketService through its real server: what callers see, and what lands on Kafka."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from deskwire.common.v1 import actor_pb2
from deskwire.tickets.v1 import ticket_pb2, ticket_service_pb2
from deskwire_common import events, topics
from deskwire_common.auth import Role
from deskwire_common.errors import Unavailable
from deskwire_common.ids import RandomIds
from deskwire_common.kafka import Reader
from support import eventually
from support.pages import forged
from support.refusals import refusal, refused

pb: Any = ticket_service_pb2
IDS = RandomIds()
OPEN = ticket_pb2.TICKET_STATE_OPEN
SOLVED = ticket_pb2.TICKET_STATE_SOLVED


def conversation(chat: Any, tenant: str = "demo") -> str:
    conversation_id = IDS.uuid7()
    chat.customers[tenant, conversation_id] = IDS.uuid7()
    return conversation_id


async def created(stub: Any, conversation_id: str, **fields: Any) -> ticket_pb2.Ticket:
    request = pb.CreateTicketRequest(
        request_id=IDS.uuid7(), conversation_id=conversation_id, subject="Parcel is late", **fields
    )
    return (await stub.CreateTicket(request)).ticket


async def solved(stub: Any, ticket_id: str, **fields: Any) -> ticket_pb2.Ticket:
    request = pb.SolveTicketRequest(request_id=IDS.uuid7(), ticket_id=ticket_id, **fields)
    return (await stub.SolveTicket(request)).ticket


async def events_of(kafka: str, subject: str, count: int) -> list[Any]:
    """The first `count` records about a subject on deskwire.tickets."""
    reader = Reader(kafka, [topics.TICKETS.name], start="earliest")

    async def started() -> bool:
        # A partition that was just made may have no leader yet.
        with contextlib.suppress(Unavailable):
            await reader.start()
        return len(reader.positions) == topics.TICKETS.partitions

    await eventually(started)
    found: list[Any] = []

    async def enough() -> bool:
        records = await reader.read(500, 0.2)
        found.extend(record for record in records if record.key == subject.encode())
        return len(found) >= count

    try:
        await eventually(enough)
    finally:
        await reader.close()
    return found


async def test_the_life_of_a_ticket(start: Any, chat: Any, kafka: str, database_url: str) -> None:
    conversation_id = conversation(chat)
    async with start(database_url) as client:
        agent, crm = client(), client(role=Role.INTEGRATION, subject="crm", system="crm:main")
        made = await created(agent, conversation_id, description="Ordered on Monday.")
        assert made.state == OPEN
        assert made.priority == ticket_pb2.TICKET_PRIORITY_NORMAL
        assert made.customer_id == chat.customers["demo", conversation_id]
        assert made.assignee_id == "alice"
        done = await solved(crm, made.ticket_id, expected_version=1, resolution="Sent again.")
        assert (done.state, done.version, done.resolution) == (SOLVED, 2, "Sent again.")
        assert done.HasField("solve_time")
        again = pb.ReopenTicketRequest(
            request_id=IDS.uuid7(), ticket_id=made.ticket_id, reason="Still late."
        )
        last = (await agent.ReopenTicket(again)).ticket
        assert (last.state, last.version, last.reopen_count) == (OPEN, 3, 1)
        read = await agent.GetTicket(pb.GetTicketRequest(ticket_id=made.ticket_id))
        assert read.ticket == last
        audit = await agent.ListTicketAudit(pb.ListTicketAuditRequest(ticket_id=made.ticket_id))
        assert [entry.action for entry in audit.entries] == [
            "ticket_created",
            "ticket_solved",
            "ticket_reopened",
        ]
        assert audit.entries[1].actor.role == actor_pb2.ROLE_INTEGRATION
        assert audit.entries[2].note == "Still late."
        records = await events_of(kafka, made.ticket_id, 3)
    found = [events.decode(record.topic, record.value, record.headers) for record in records]
    assert [event.event_type for event in found] == [entry.action for entry in audit.entries]
    assert [event.sequence for event in found] == [1, 2, 3]
    assert [event.origin for event in found] == ["deskwire", "crm:main", "deskwire"]
    assert {event.correlation_id for event in found} == {conversation_id}
    # Event = state: the last event's snapshot is what a read returns.
    assert events.unpack(found[-1]).ticket == last
    data = events.unpack(found[1])
    assert data.changed["state"].to.string_value == "TICKET_STATE_SOLVED"
    for record, event in zip(records, found, strict=True):
        assert events.traceparent_of(record.headers).split("-")[1] == event.trace_id


async def test_a_repeated_request_has_one_effect(client: Any, chat: Any, kafka: str) -> None:
    stub = client()
    request = pb.CreateTicketRequest(
        request_id="r-1", conversation_id=conversation(chat), subject="Once"
    )
    answers = await asyncio.gather(*(stub.CreateTicket(request) for _ in range(5)))
    assert len({answer.ticket.ticket_id for answer in answers}) == 1
    # Also when chat has forgotten the conversation.
    chat.customers.clear()
    assert await stub.CreateTicket(request) == answers[0]
    request.subject = "Twice"
    assert await refusal(stub.CreateTicket(request)) == (
        "ALREADY_EXISTS",
        "REQUEST_ID_REUSED",
    )
    ticket_id = answers[0].ticket.ticket_id
    solve = pb.SolveTicketRequest(request_id="r-2", ticket_id=ticket_id)
    first = await stub.SolveTicket(solve)
    assert await stub.SolveTicket(solve) == first
    assert len(await events_of(kafka, ticket_id, 2)) == 2
    # Another person's request_id is another request.
    bob = client(subject="bob")
    assert (await refusal(bob.SolveTicket(solve)))[1] == "INVALID_STATE"


async def test_preconditions_are_told(client: Any, chat: Any) -> None:
    stub = client()
    ticket = await created(stub, conversation(chat))
    call = solved(stub, ticket.ticket_id, expected_version=9)
    error = await refused(call)
    assert (error.code.name, error.reason_name) == ("ABORTED", "VERSION_MISMATCH")
    assert error.metadata["current_version"] == "1"
    reopen = pb.ReopenTicketRequest(request_id="r", ticket_id=ticket.ticket_id)
    error = await refused(stub.ReopenTicket(reopen))
    assert (error.code.name, error.reason_name) == ("FAILED_PRECONDITION", "INVALID_STATE")
    assert error.metadata == {"state": "OPEN"}
    # What failed was not remembered: the same request works once it can.
    await solved(stub, ticket.ticket_id)
    assert (await stub.ReopenTicket(reopen)).ticket.reopen_count == 1


async def test_another_tenant_sees_nothing(client: Any, chat: Any) -> None:
    conversation_id = conversation(chat)
    ticket = await created(client(), conversation_id)
    other = client(tenant="other")
    for call in (
        other.GetTicket(pb.GetTicketRequest(ticket_id=ticket.ticket_id)),
        other.ListTicketAudit(pb.ListTicketAuditRequest(ticket_id=ticket.ticket_id)),
        solved(other, ticket.ticket_id),
        other.ReopenTicket(pb.ReopenTicketRequest(request_id="x", ticket_id=ticket.ticket_id)),
    ):
        assert await refusal(call) == ("NOT_FOUND", "TICKET_NOT_FOUND")
    assert (await refusal(created(other, conversation_id)))[1] == "CONVERSATION_NOT_FOUND"
    assert not (await other.ListTickets(pb.ListTicketsRequest())).tickets


async def test_chat_is_away(client: Any, chat: Any, start: Any, tmp_path: Any) -> None:
    good = chat.target
    chat.target = "127.0.0.1:1"
    async with start(f"sqlite:///{tmp_path / 'other.db'}") as lonely:
        answer = await refusal(created(lonely(), conversation(chat)))
    assert answer == ("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE")
    chat.target = good


async def test_chat_knows_first_that_the_tenant_is_disabled(client: Any, chat: Any) -> None:
    chat.disabled = "demo"
    answer = await refusal(created(client(), conversation(chat)))
    assert answer == ("PERMISSION_DENIED", "TENANT_DISABLED")


async def test_pages(client: Any, chat: Any) -> None:
    stub = client(tenant="pages")
    tickets = [await created(stub, conversation(chat, "pages")) for _ in range(5)]
    await solved(stub, tickets[2].ticket_id)
    seen: list[int] = []
    token = ""
    while True:
        page = await stub.ListTickets(pb.ListTicketsRequest(page_size=2, page_token=token))
        seen += [ticket.number for ticket in page.tickets]
        if not page.next_page_token:
            break
        token = page.next_page_token
        # What is made meanwhile is on no later page.
        await created(stub, conversation(chat, "pages"))
    assert seen == [5, 4, 3, 2, 1]
    only = await stub.ListTickets(pb.ListTicketsRequest(states=[SOLVED]))
    assert [ticket.number for ticket in only.tickets] == [3]
    wrong = pb.ListTicketsRequest(states=[SOLVED], page_token=token)
    assert (await refusal(stub.ListTickets(wrong)))[1] == "INVALID_PAGE_TOKEN"
    ticket_id = tickets[2].ticket_id
    audit = await stub.ListTicketAudit(pb.ListTicketAuditRequest(ticket_id=ticket_id, page_size=1))
    rest = await stub.ListTicketAudit(
        pb.ListTicketAuditRequest(ticket_id=ticket_id, page_token=audit.next_page_token)
    )
    assert [entry.version for entry in [*audit.entries, *rest.entries]] == [1, 2]
    assert not rest.next_page_token
    for bad in forged(token, 1):
        listing = pb.ListTicketsRequest(page_token=bad)
        assert (await refusal(stub.ListTickets(listing)))[1] == "INVALID_PAGE_TOKEN"
    for bad in forged(audit.next_page_token, 1):
        listing = pb.ListTicketAuditRequest(ticket_id=ticket_id, page_token=bad)
        assert (await refusal(stub.ListTicketAudit(listing)))[1] == "INVALID_PAGE_TOKEN"


async def test_bad_input_is_named(client: Any, chat: Any) -> None:
    stub = client()
    for call in (
        created(stub, "no-uuid"),
        stub.CreateTicket(pb.CreateTicketRequest(request_id="r", subject="x")),
        stub.CreateTicket(
            pb.CreateTicketRequest(
                request_id="r", conversation_id=conversation(chat), subject="a\x00b"
            )
        ),
        stub.ListTickets(pb.ListTicketsRequest(assignee_id="é")),
        stub.GetTicket(pb.GetTicketRequest(ticket_id="'; DROP TABLE tickets")),
    ):
        assert await refusal(call) == ("INVALID_ARGUMENT", "INVALID_FIELD")


async def test_a_subject_is_one_line_with_something_to_see(client: Any, chat: Any) -> None:
    stub = client()

    async def make(subject: str) -> Any:
        request = pb.CreateTicketRequest(
            request_id=IDS.uuid7(), conversation_id=conversation(chat), subject=subject
        )
        return (await stub.CreateTicket(request)).ticket

    for bad in (" ", "\n\n", "\u2800", "\u3164", "\ufeff", "a\nb", "a\x1b[31m", "A\u202egpj"):
        error = await refused(make(bad))
        assert (error.reason_name, error.violations[0][0]) == ("INVALID_FIELD", "subject"), bad
    for good, kept in (
        ("\u200eParcel\u3000\u5230 ", "Parcel\u3000\u5230"),
        ("\U0001fae8", "\U0001fae8"),
    ):
        assert (await make(good)).subject == kept


async def test_an_agent_of_any_sign_in_system_has_tickets(client: Any, chat: Any) -> None:
    for subject in ("auth0|5f7c8ec7", 'CORP\\ana "x"', "ana+shop@example.org", "~" * 255):
        stub = client(subject=subject)
        made = await created(stub, conversation(chat))
        assert made.assignee_id == subject
        found = await stub.ListTickets(pb.ListTicketsRequest(assignee_id=subject))
        assert [each.ticket_id for each in found.tickets] == [made.ticket_id]
        audit = await stub.ListTicketAudit(pb.ListTicketAuditRequest(ticket_id=made.ticket_id))
        assert audit.entries[0].actor.subject == subject


async def test_roles(client: Any, chat: Any) -> None:
    ticket = await created(client(role=Role.BOT, subject="bot"), conversation(chat))
    visitor = client(role=Role.VISITOR, subject="1001")
    get = pb.GetTicketRequest(ticket_id=ticket.ticket_id)
    for call in (visitor.GetTicket(get), solved(client(role=Role.BOT), ticket.ticket_id)):
        assert await refusal(call) == ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED")
