"""Customers over gRPC: one per person, whoever tells of them, and an event only when something really changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from deskwire.chat.v1 import customer_pb2, customer_service_pb2_grpc
from deskwire.chat.v1 import customer_service_pb2 as pb
from deskwire_common.auth import Role, TokenSigner
from support import eventually
from support.refusals import refused
from support.suite import Desk, desk, new_id
from support.topic import read_rows


@pytest.fixture
async def d(
    database_url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner
) -> AsyncIterator[Desk]:
    async with desk(database_url, kafka, valkey, keys_file, signer) as found:
        yield found


def stub_of(d: Desk, role: Role = Role.INTEGRATION) -> Any:
    system = "crm:main" if role is Role.INTEGRATION else ""
    return customer_service_pb2_grpc.CustomerServiceStub(d.channel(role, "me", system=system))


def upsert(version: int = 0, *ids: str, **fields: str) -> pb.UpsertCustomerRequest:
    """What the CRM says of its row."""
    customer = customer_pb2.Customer(**fields)
    for each in ids or ("4711",):
        customer.identities.add(namespace="crm:main", value=each)
    return pb.UpsertCustomerRequest(
        request_id=new_id(),
        customer=customer,
        update_mask=FieldMask(paths=list(fields)),
        source_version=version,
    )


def update(customer: customer_pb2.Customer, expected: int = 0, **fields: str) -> Any:
    return pb.UpdateCustomerRequest(
        request_id=new_id(),
        customer=customer_pb2.Customer(customer_id=customer.customer_id, **fields),
        update_mask=FieldMask(paths=list(fields)),
        expected_version=expected,
    )


async def told(d: Desk, kafka: str, customer_id: str) -> list[dict[str, Any]]:
    """The customer's events on Kafka, once the outbox is empty."""
    rows = await read_rows(kafka, "deskwire.customers")
    return [each for each in rows if each["subject"] == customer_id]


async def test_an_upsert_finds_makes_and_changes(d: Desk) -> None:
    crm = stub_of(d)
    first = await crm.UpsertCustomer(upsert(display_name="Ada", email="ada@example.org"))
    assert first.created
    assert first.customer.version == 1
    same = await crm.UpsertCustomer(upsert(display_name="Ada"))
    assert (same.created, same.customer) == (False, first.customer)
    changed = await crm.UpsertCustomer(upsert(display_name="Ada Lovelace"))
    assert changed.customer.version == 2
    assert (changed.customer.display_name, changed.customer.email) == (
        "Ada Lovelace",
        "ada@example.org",
    )


async def test_an_old_row_changes_nothing(d: Desk) -> None:
    crm = stub_of(d)
    await crm.UpsertCustomer(upsert(7, display_name="new"))
    old = await crm.UpsertCustomer(upsert(6, display_name="old"))
    assert old.customer.display_name == "new"
    # Two systems count for themselves.
    operator = stub_of(d, Role.OPERATOR)
    assert (await operator.UpsertCustomer(upsert(1, display_name="ours"))).customer.version == 2


async def test_versions_of_a_source_that_was_created_again_are_counted_anew(d: Desk) -> None:
    """It counts by positions first and by a column of the rows afterwards: much smaller numbers."""
    crm = stub_of(d)

    async def written(writer: str, version: int, name: str) -> str:
        request = upsert(version, display_name=name)
        request.source_writer = writer
        return str((await crm.UpsertCustomer(request)).customer.display_name)

    assert await written("first", 9 * 10**17, "first") == "first"
    assert await written("second", 7, "second") == "second"
    assert await written("second", 6, "old") == "second"
    assert await written("", 1, "by the CRM itself") == "by the CRM itself"
    error = await refused(written("no/name", 1, "x"))
    assert error.reason_name == "INVALID_FIELD"


async def test_a_second_identity_is_linked_and_two_customers_are_not_mixed_up(d: Desk) -> None:
    crm = stub_of(d)
    one = (await crm.UpsertCustomer(upsert(0, "1", display_name="One"))).customer
    both = (await crm.UpsertCustomer(upsert(0, "1", "2", display_name="One"))).customer
    assert both.customer_id == one.customer_id
    assert [each.value for each in both.identities] == ["1", "2"]
    three = (await crm.UpsertCustomer(upsert(0, "3", display_name="Three"))).customer
    error = await refused(crm.UpsertCustomer(upsert(0, "2", "3", display_name="Both")))
    assert error.reason_name == "IDENTITY_CONFLICT"
    assert set(error.metadata.values()) == {one.customer_id, three.customer_id}
    request = pb.GetCustomerRequest(customer_id=three.customer_id)
    assert (await crm.GetCustomer(request)).customer == three


async def test_an_id_with_a_blank_behind_it_is_the_same_on_every_database(d: Desk) -> None:
    crm = stub_of(d)
    one = (await crm.UpsertCustomer(upsert(0, "A-1", display_name="One"))).customer
    same = await crm.UpsertCustomer(upsert(0, "A-1 ", "\u200eA-1", display_name="One"))
    assert (same.created, same.customer) == (False, one)
    asked = pb.LookupCustomerRequest(
        identity=customer_pb2.Identity(namespace="crm:main", value=" A-1\u00a0")
    )
    assert (await crm.LookupCustomer(asked)).customer == one
    for bad in ("a\nb", "\x00", "\u2800", "A\u202eB"):
        error = await refused(crm.UpsertCustomer(upsert(0, "A-1", bad, display_name="One")))
        assert error.reason_name == "INVALID_FIELD", bad
        assert error.violations[0][0] == "customer.identities[1].value"


async def test_an_update_knows_what_it_changes(d: Desk) -> None:
    customer = (await stub_of(d).UpsertCustomer(upsert(display_name="Ada"))).customer
    agent = stub_of(d, Role.AGENT)
    changed = (await agent.UpdateCustomer(update(customer, 1, email="ada@example.org"))).customer
    assert (changed.version, changed.display_name) == (2, "Ada")
    error = await refused(agent.UpdateCustomer(update(customer, 1, email="x@example.org")))
    assert (error.code.name, error.reason_name) == ("ABORTED", "VERSION_MISMATCH")
    assert error.metadata == {"current_version": "2", "expected_version": "1"}
    for mask in ([], ["version"], ["identities"], ["email", "nothing"]):
        request = update(customer, email="x@example.org")
        request.update_mask.CopyFrom(FieldMask(paths=mask))
        error = await refused(agent.UpdateCustomer(request))
        assert error.reason_name == "INVALID_UPDATE_MASK", mask
    for bad in ("line\nbreak", "\x00"):
        error = await refused(agent.UpdateCustomer(update(customer, display_name=bad)))
        assert error.code.name == "INVALID_ARGUMENT", bad


async def test_the_event_of_a_new_phone_number(d: Desk, kafka: str) -> None:
    """Golden: this JSON is what CRM teams read; a change here breaks them."""
    crm = stub_of(d)
    made = upsert(1, display_name="Li Na", email="li@example.org")
    made.customer.identities.add(namespace="visitor", value="1001")
    customer = (await crm.UpsertCustomer(made)).customer
    after = (await crm.UpsertCustomer(upsert(2, mobile="+86 138 0013 8000"))).customer
    # Without an effect: no event.
    await crm.UpsertCustomer(upsert(3, mobile="+8613800138000"))

    async def two() -> bool:
        return len(await told(d, kafka, customer.customer_id)) >= 2

    await eventually(two, timeout=30)
    created, event = await told(d, kafka, customer.customer_id)
    assert (created["event_type"], created["sequence"]) == ("customer_created", 1)
    for name in ("event_id", "trace_id", "occurred_at"):
        assert event.pop(name)
    create_time, update_time = (
        each.ToJsonString() for each in (after.create_time, after.update_time)
    )
    assert event == {
        "event_type": "customer_updated",
        "tenant_id": d.tenant,
        "subject": customer.customer_id,
        "sequence": 2,
        "actor": {"role": "ROLE_INTEGRATION", "subject": "me"},
        "origin": "crm:main",
        "correlation_id": "",
        "data": {
            "user_id": "1001",
            "new_mobile": "+8613800138000",
            "timestamp": after.update_time.seconds,
            "customer": {
                "customer_id": customer.customer_id,
                "display_name": "Li Na",
                "email": "li@example.org",
                "mobile": "+8613800138000",
                "mobile_raw": "+86 138 0013 8000",
                "identities": [
                    {"namespace": "crm:main", "value": "4711"},
                    {"namespace": "visitor", "value": "1001"},
                ],
                "version": 2,
                "create_time": create_time,
                "update_time": update_time,
            },
            "changed": {"mobile": {"from": None, "to": "+8613800138000"}},
        },
    }
