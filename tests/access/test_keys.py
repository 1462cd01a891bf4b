"""Integration keys: the secret is told once and kept nowhere; tokens come for it until the key is revoked."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from deskwire.chat.v1 import customer_service_pb2, customer_service_pb2_grpc
from deskwire.chat.v1 import integration_key_service_pb2 as keys_pb
from deskwire.chat.v1 import tenant_service_pb2 as tenants_pb
from deskwire.events.v1 import access_events_pb2
from deskwire_chat.store.tables import metadata
from deskwire_common import events, topics
from deskwire_common.auth import KeySet, Role, TokenVerifier
from deskwire_common.logging import redact_text
from deskwire_common.rpc import make_channel
from support.access import Access
from support.refusals import refusal
from support.suite import new_id

PAGE = (Path(__file__).parents[2] / "docs" / "operations" / "keys.md").read_text()
INVALID = ("UNAUTHENTICATED", "INTEGRATION_KEY_INVALID")


async def create(access: Access, **more: str) -> keys_pb.CreateIntegrationKeyResponse:
    request = keys_pb.CreateIntegrationKeyRequest(
        request_id=new_id(), system_id="crm:x", display_name="CRM 🙂", **more
    )
    return await access.keys().CreateIntegrationKey(request)


async def exchange(access: Access, secret: str) -> keys_pb.ExchangeIntegrationKeyResponse:
    request = keys_pb.ExchangeIntegrationKeyRequest(secret=secret)
    return await access.anyone().ExchangeIntegrationKey(request)


def revoke(key_id: str, **more: int) -> keys_pb.RevokeIntegrationKeyRequest:
    return keys_pb.RevokeIntegrationKeyRequest(request_id=new_id(), key_id=key_id, **more)


async def test_a_secret_gives_tokens_until_its_key_is_revoked(everywhere: Access) -> None:
    made = await create(everywhere)
    answer = await exchange(everywhere, made.secret)
    assert (answer.tenant_id, answer.system_id) == (everywhere.desk.tenant, "crm:x")
    verifier = TokenVerifier(everywhere.desk.chat.keys)
    principal, expires = verifier.verify_with_expiry(answer.token)
    assert (principal.tenant, principal.role) == (everywhere.desk.tenant, Role.INTEGRATION)
    assert (principal.system, principal.name) == ("crm:x", "CRM 🙂")
    now = everywhere.desk.chat.clock.now().timestamp()
    assert 0 < expires - now < 600
    assert answer.expire_time.seconds in {expires, expires - 1}

    # It is a token like others.
    channel = make_channel(everywhere.chat, token=lambda: answer.token)
    everywhere.desk.stack.push_async_callback(channel.close)
    stub = customer_service_pb2_grpc.CustomerServiceStub(channel)
    assert not (await stub.ListCustomers(customer_service_pb2.ListCustomersRequest())).customers

    operator = everywhere.keys()
    stranger = everywhere.keys(tenant="another")
    missing = ("NOT_FOUND", "INTEGRATION_KEY_NOT_FOUND")
    assert await refusal(stranger.RevokeIntegrationKey(revoke(made.key.key_id))) == missing
    assert not (await stranger.ListIntegrationKeys(keys_pb.ListIntegrationKeysRequest())).keys
    early = revoke(made.key.key_id, expected_version=2)
    assert await refusal(operator.RevokeIntegrationKey(early)) == ("ABORTED", "VERSION_MISMATCH")
    request = revoke(made.key.key_id, expected_version=1)
    revoked = await operator.RevokeIntegrationKey(request)
    assert (revoked.key.revoked, revoked.key.version) == (True, 2)
    assert await operator.RevokeIntegrationKey(request) == revoked
    again = operator.RevokeIntegrationKey(revoke(made.key.key_id))
    assert await refusal(again) == ("FAILED_PRECONDITION", "INVALID_STATE")
    assert await refusal(exchange(everywhere, made.secret)) == INVALID
    listed = await operator.ListIntegrationKeys(keys_pb.ListIntegrationKeysRequest())
    assert list(listed.keys) == [revoked.key]

    found = await everywhere.events(topics.ACCESS.name, 2)
    assert [each.subject for each in found] == [made.key.key_id] * 2
    assert [each.sequence for each in found] == [1, 2]
    first, second = (events.unpack(each) for each in found)
    assert first == access_events_pb2.IntegrationKeyCreated(key=made.key)
    assert second.key == revoked.key
    assert second.changed["revoked"].to.bool_value


async def test_the_secret_is_told_once_and_kept_nowhere(
    everywhere: Access, capfd: pytest.CaptureFixture[str]
) -> None:
    request = keys_pb.CreateIntegrationKeyRequest(request_id=new_id(), system_id="crm:x")
    made = await everywhere.keys().CreateIntegrationKey(request)
    again = await everywhere.keys().CreateIntegrationKey(request)
    assert (again.key, again.secret) == (made.key, "")
    token = (await exchange(everywhere, made.secret)).token
    await refusal(exchange(everywhere, made.secret[:-1]))

    secret = made.secret.rpartition("_")[2]
    assert len(bytes.fromhex(secret)) == 32
    kept = []
    async with everywhere.database() as db, db.read() as c:
        for table in metadata.sorted_tables:
            kept += [value for row in await c.execute(sa.select(table)) for value in row]
    assert made.key.key_id in kept
    for value in kept:
        data = value if isinstance(value, bytes) else str(value).encode()
        assert bytes.fromhex(secret) not in data
        assert secret.encode() not in data
    logged = "".join(capfd.readouterr())
    assert "integration_key_exchanged" in logged
    assert secret[:-1] not in logged
    assert token not in logged
    assert redact_text(f"given {made.secret}!").endswith("_[redacted]!")


SPOILT: dict[str, Callable[[str, str], str]] = {
    "another digit": lambda mine, _: mine[:-1] + ("0" if mine[-1] != "0" else "1"),
    "cut off": lambda mine, _: mine[:-1],
    "too long": lambda mine, _: mine + "0",
    "of another key": lambda mine, other: mine[:37] + other[37:],
    "of no key": lambda mine, _: "dwk_" + "0" * 32 + mine[36:],
    "upper case": lambda mine, _: mine.upper(),
    "another form": lambda _, __: "letmein",
    "a blank behind": lambda mine, _: mine + "\n",
}


async def test_wrong_secrets(access: Access) -> None:
    mine, other = (await create(access)).secret, (await create(access)).secret
    for name, spoil in SPOILT.items():
        assert await refusal(exchange(access, spoil(mine, other))) == INVALID, name
    assert await refusal(exchange(access, "")) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert (await exchange(access, mine)).token


async def test_guessing_gets_slow_and_locks_nobody_out(access: Access) -> None:
    mine = (await create(access)).secret
    assert (await exchange(access, mine)).token
    wrong = SPOILT["another digit"](mine, "")

    async def guess() -> tuple[str, str]:
        return await refusal(exchange(access, wrong))

    ends = [await guess() for _ in range(30)]
    assert ends[0] == INVALID
    assert ends[-1] == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
    assert (await exchange(access, mine)).token


async def test_a_disabled_tenants_keys_give_no_tokens(access: Access) -> None:
    made = await create(access)
    stub, tenant = access.tenants(), access.desk.tenant
    await stub.CreateTenant(tenants_pb.CreateTenantRequest(request_id="c", tenant_id=tenant))
    await stub.DisableTenant(tenants_pb.DisableTenantRequest(request_id="d", tenant_id=tenant))
    # Who has no secret learns nothing of the tenant.
    assert await refusal(exchange(access, made.secret[:-1])) == INVALID
    assert await refusal(exchange(access, made.secret)) == ("PERMISSION_DENIED", "TENANT_DISABLED")
    await stub.EnableTenant(tenants_pb.EnableTenantRequest(request_id="e", tenant_id=tenant))
    assert (await exchange(access, made.secret)).token


async def test_an_integrator_exchanges_a_key_as_the_page_says(
    access: Access, keys_file: Path
) -> None:
    (program,) = re.findall(r"```python\n(import grpc.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(program, names)
    made = await create(access)
    token = await asyncio.to_thread(names["integration_token"], access.chat, made.secret)
    assert TokenVerifier(KeySet.load(keys_file)).verify(token).system == "crm:x"
