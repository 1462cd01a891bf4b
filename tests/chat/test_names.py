"""Names, ids and texts as people and sign-in systems have them, through gateway, chat and each database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from deskwire.chat.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    conversation_pb2,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
    customer_pb2,
    customer_service_pb2,
    customer_service_pb2_grpc,
)
from deskwire.gateway.v1 import frame_pb2, gateway_service_pb2, gateway_service_pb2_grpc
from deskwire_common.auth import Profile, Role, TokenSigner
from support import eventually
from support.refusals import refused
from support.suite import Desk, desk, new_id
from support.talks import conversation, is_with, operator
from support.topic import read_rows
from support.wire import Wire, reason, wire

SUBJECTS = (
    "auth0|5f7c8ec7c33c6c004bbafe82",
    "ana+shop@example.org",
    "q83vEjRWeJA=",
    "users/4711?a=b#c%2F",
    'CORP\\ana "x", {y}',
    "a" * 86,
    "~" * 255,
)


@pytest.fixture
async def d(
    database_url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> AsyncIterator[Desk]:
    async with desk(database_url, kafka, valkey, keys_file, signer) as found:
        yield found


async def say(who: Wire, talk: str, **content: Any) -> str:
    """Send some content: "" when it is stored, else the reason why not, and the field."""
    send = frame_pb2.Send(
        conversation_id=talk,
        client_msg_id=new_id(),
        content=conversation_pb2.Content(**content),
    )
    await who.say(send=send)
    answer = await who.hear_one_of("send_ack", "error")
    return "" if isinstance(answer, frame_pb2.SendAck) else reason(answer.reason)


async def test_ids_of_sign_in_systems_go_everywhere(d: Desk, kafka: str) -> None:
    agents = agent_service_pb2_grpc.AgentServiceStub(d.channel(Role.OPERATOR, "olga"))
    customers = customer_service_pb2_grpc.CustomerServiceStub(d.channel(Role.OPERATOR, "olga"))
    for subject in SUBJECTS:
        await d.available(subject, capacity=1)
        async with (
            wire(d, d.token(Role.VISITOR, subject)) as visitor,
            wire(d, d.token(Role.AGENT, subject)) as agent,
        ):
            talk = new_id()
            assert await say(visitor, talk, text="hello") == ""
            await eventually(lambda talk=talk, subject=subject: is_with(d, talk, subject))
            assert (await agent.hear("push")).IsInitialized()
            assert await say(agent, talk, text="hi") == ""
            found = await conversation(d, talk)
            assert (found.visitor_id, found.agent_id) == (subject, subject)
            identity = customer_pb2.Identity(namespace="visitor", value=subject)
            asked = customer_service_pb2.LookupCustomerRequest(identity=identity)
            customer = (await customers.LookupCustomer(asked)).customer
            assert customer.customer_id == found.customer_id
            sessions = gateway_service_pb2_grpc.GatewayServiceStub(
                d.channel(Role.OPERATOR, "olga", port=d.gateway.port)
            )

            async def listed(stub: Any = sessions, subject: str = subject) -> bool:
                page = await stub.ListSessions(gateway_service_pb2.ListSessionsRequest())
                return [each.user.subject for each in page.sessions].count(subject) == 2

            await eventually(listed)
        transfer = conversation_service_pb2.TransferConversationRequest(
            request_id=new_id(), conversation_id=talk
        )
        await operator(d).TransferConversation(transfer)
        transfer = conversation_service_pb2.TransferConversationRequest(
            request_id=new_id(), conversation_id=talk, agent_id=subject
        )
        await operator(d).TransferConversation(transfer)
    # Page by page: the token of a page has an id in it.
    pages: list[str] = []
    token = ""
    while token or not pages:
        listing = agent_service_pb2.ListAgentsRequest(page_size=1, page_token=token)
        page = await agents.ListAgents(listing)
        pages += [each.agent_id for each in page.agents]
        token = page.next_page_token
    assert pages == sorted(SUBJECTS)

    async def published() -> bool:
        rows = await read_rows(kafka, "deskwire.agents")
        mine = {each["subject"] for each in rows if each["tenant_id"] == d.tenant}
        return mine == {f"{d.tenant}/{subject}" for subject in SUBJECTS}

    await eventually(published, timeout=30)


async def test_a_text_has_something_to_see(d: Desk) -> None:
    async with wire(d, d.token(Role.VISITOR, "v")) as visitor:
        talk = new_id()
        for unseen in (" ", "\n\n", "\u00a0", "\u200b", "\u2800", "\u3164", "\ufeff", "\t", "\x07"):
            assert await say(visitor, new_id(), text=unseen) == "INVALID_FIELD", unseen
        assert await say(visitor, talk, text="hello") == ""
        edit = conversation_pb2.Edit(seq=1, text="\u2800\u200b")
        assert await say(visitor, talk, edit=edit) == "INVALID_FIELD"
        for seen in ("a\nb\x1b[31m\0", "\u2764\ufe0f", ".", "\u0300", "\U0001fae8", "  x"):
            assert await say(visitor, talk, text=seen) == "" or seen.endswith("\0"), seen
    crm = conversation_service_pb2_grpc.ConversationServiceStub(
        d.channel(Role.INTEGRATION, "crm", system="crm:main")
    )
    for content in (
        conversation_pb2.Content(text="\u2800"),
        conversation_pb2.Content(note=conversation_pb2.Note(text=" ")),
        conversation_pb2.Content(edit=conversation_pb2.Edit(seq=1, text="\u3164")),
    ):
        request = conversation_service_pb2.SendMessageRequest(
            conversation_id=talk, client_msg_id=new_id(), content=content
        )
        error = await refused(crm.SendMessage(request))
        assert error.reason_name == "INVALID_FIELD"
        assert error.violations[0][0].startswith("content.")


@pytest.mark.parametrize(
    ("claims", "shown"),
    [
        ({"name": "A\u202egpj\x1b[2J\nB"}, ("", "", "")),
        ({"name": "x" * 129, "email": "ana@example.org\u00a0"}, ("", "ana@example.org", "")),
        ({"name": "\u200eAna\u3000B", "phone_number": "+33\u00a06\u00a012\u00a034\u00a056\u00a078"},
         ("Ana\u3000B", "", "+33612345678")),
        ({"name": "Ana", "phone_number": "\u202a+86 138 0013 8000\u202c"}, ("Ana", "", "+8613800138000")),
    ],
)  # fmt: skip
async def test_a_profile_shuts_nobody_out(
    kafka: str,
    valkey: str,
    keys_file: Path,
    signer: TokenSigner,
    tmp_path: Path,
    claims: dict[str, str],
    shown: tuple[str, str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A website signs what it likes.
    monkeypatch.setattr(
        "deskwire_common.auth.signer.checked_principal", lambda principal: principal
    )
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    async with desk(url, kafka, valkey, keys_file, signer) as d:
        profile = Profile(claims.get("email", ""), claims.get("phone_number", ""))
        token = d.token(Role.VISITOR, "v", name=claims["name"], profile=profile)
        async with wire(d, token) as visitor:
            talk = new_id()
            assert await say(visitor, talk, text="hello") == ""
        customers = customer_service_pb2_grpc.CustomerServiceStub(d.channel(Role.OPERATOR, "olga"))
        asked = customer_service_pb2.GetCustomerRequest(
            customer_id=(await conversation(d, talk)).customer_id
        )
        found = (await customers.GetCustomer(asked)).customer
        assert (found.display_name, found.email, found.mobile) == shown


async def test_one_customer_whoever_spells_them(d: Desk) -> None:
    crm = customer_service_pb2_grpc.CustomerServiceStub(
        d.channel(Role.INTEGRATION, "crm", system="crm:main")
    )

    async def upsert(**fields: Any) -> customer_pb2.Customer:
        customer = customer_pb2.Customer(**fields)
        customer.identities.add(namespace="crm:main", value="4711")
        request = customer_service_pb2.UpsertCustomerRequest(
            request_id=new_id(), customer=customer, update_mask=FieldMask(paths=list(fields))
        )
        found: customer_pb2.Customer = (await crm.UpsertCustomer(request)).customer
        return found

    first = await upsert(
        display_name="\u5c71\u7530\u3000\u592a\u90ce\u200f",
        email="ana@B\u00fccher.example\u00a0",
        mobile="(+86) 138 0013 8000 ext. 12",
    )
    assert (first.display_name, first.email) == (
        "\u5c71\u7530\u3000\u592a\u90ce",
        "ana@B\u00fccher.example",
    )
    assert (first.mobile, first.mobile_raw) == (
        "+8613800138000;ext=12",
        "(+86) 138 0013 8000 ext. 12",
    )
    again = await upsert(
        display_name="\u5c71\u7530 \u592a\u90ce",
        email=" ana@xn--bcher-kva.EXAMPLE",
        mobile="+8613800138000x12",
    )
    assert again == first
    other = await upsert(mobile="+86 138 0013 8000")
    assert (other.version, other.mobile, other.mobile_raw) == (
        2,
        "+8613800138000",
        "+86 138 0013 8000",
    )
    for field, bad in (
        ("display_name", "\u2800"),
        ("display_name", "A\u202eB"),
        ("email", "a\nb@example.org"),
        ("mobile", "+49\x1b30"),
    ):
        error = await refused(upsert(**{field: bad}))
        assert (error.reason_name, error.violations[0][0]) == ("INVALID_FIELD", f"customer.{field}")
