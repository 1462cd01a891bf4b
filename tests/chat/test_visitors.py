"""What a visitor's token vouches for reaches the customer: one person stays one customer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from deskwire.chat.v1 import (
    conversation_service_pb2,
    conversation_service_pb2_grpc,
    customer_pb2,
    customer_service_pb2,
    customer_service_pb2_grpc,
)
from deskwire_common.auth import Profile, Role, TokenSigner
from support import eventually
from support.suite import Desk, desk, new_id


@pytest.fixture
async def d(
    database_url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> AsyncIterator[Desk]:
    async with desk(database_url, kafka, valkey, keys_file, signer) as found:
        yield found


async def opened_by(d: Desk, subject: str, **token: Any) -> customer_pb2.Customer:
    """The customer of a conversation that a visitor opens."""
    visitor = await d.client(Role.VISITOR, subject, **token)
    conversation_id = new_id()
    await visitor.send(conversation_id, "hello")
    channel = d.channel(Role.OPERATOR, "op")
    found = await conversation_service_pb2_grpc.ConversationServiceStub(channel).GetConversation(
        conversation_service_pb2.GetConversationRequest(conversation_id=conversation_id)
    )
    return await customer_of(d, found.conversation.customer_id)


async def customer_of(d: Desk, customer_id: str) -> customer_pb2.Customer:
    stub = customer_service_pb2_grpc.CustomerServiceStub(d.channel(Role.OPERATOR, "op"))
    found = await stub.GetCustomer(customer_service_pb2.GetCustomerRequest(customer_id=customer_id))
    return found.customer


async def crm_has(d: Desk, crm_id: str, **fields: str) -> customer_pb2.Customer:
    """A customer that the CRM told of."""
    stub = customer_service_pb2_grpc.CustomerServiceStub(
        d.channel(Role.INTEGRATION, "crm", system="crm:main")
    )
    customer = customer_pb2.Customer(**fields)
    customer.identities.add(namespace="crm:main", value=crm_id)
    answer = await stub.UpsertCustomer(
        customer_service_pb2.UpsertCustomerRequest(
            request_id=new_id(), customer=customer, update_mask=FieldMask(paths=list(fields))
        )
    )
    return answer.customer


def identities(customer: customer_pb2.Customer) -> list[tuple[str, str]]:
    return [(each.namespace, each.value) for each in customer.identities]


async def test_a_new_visitor_is_made_with_what_the_token_says(d: Desk) -> None:
    customer = await opened_by(
        d,
        "web-1",
        name="Li Na",
        profile=Profile("li@example.org", "+86 138 0013 8000", (("crm:main", "4711"),)),
    )

    assert (customer.display_name, customer.email, customer.mobile, customer.version) == (
        "Li Na",
        "li@example.org",
        "+8613800138000",
        1,
    )
    assert identities(customer) == [("crm:main", "4711"), ("visitor", "web-1")]


async def test_an_id_of_the_token_finds_the_customer_of_the_crm(d: Desk) -> None:
    known = await crm_has(d, "4711", display_name="Li Na", mobile="+8613800138000")
    seen: list[Any] = []
    await d.client(Role.AGENT, "alice", name="Alice", on_push=seen.append)
    await d.available("alice")
    profile = Profile("li@example.org", "+8613999999999", (("crm:main", "4711"),))

    found = await opened_by(d, "web-1", name="Lily", profile=profile)
    assert found.customer_id == known.customer_id
    assert identities(found) == [("crm:main", "4711"), ("visitor", "web-1")]
    # The token fills what is empty, and overwrites nothing.
    assert (found.display_name, found.mobile, found.email) == (
        "Li Na",
        "+8613800138000",
        "li@example.org",
    )
    assert found.version == known.version + 1

    # The agent who has a conversation of the customer is told when a later token says more.
    await eventually(lambda: any(each.HasField("conversation") for each in seen))
    more = Profile(ids=(("crm:main", "4711"), ("shop:main", "s-9")))
    again = await opened_by(d, "phone-1", profile=more)
    assert again.customer_id == known.customer_id
    assert identities(again)[1:] == [
        ("shop:main", "s-9"),
        ("visitor", "phone-1"),
        ("visitor", "web-1"),
    ]
    await eventually(
        lambda: any(
            each.HasField("customer") and len(each.customer.identities) == 4 for each in seen
        )
    )


async def test_the_same_token_again_changes_nothing(d: Desk) -> None:
    profile = Profile("li@example.org", "", (("crm:main", "4711"),))
    first = await opened_by(d, "web-1", profile=profile)
    second = await opened_by(d, "web-1", profile=profile)
    assert second == first


async def test_an_id_of_another_customer_stays_with_them(d: Desk) -> None:
    mine = await opened_by(d, "web-1")
    theirs = await crm_has(d, "4711", display_name="Somebody Else")

    found = await opened_by(d, "web-1", profile=Profile(ids=(("crm:main", "4711"),)))

    assert found == mine
    assert await customer_of(d, theirs.customer_id) == theirs
