"""Every list of the contract with its longest rows and its largest page: a page is bounded in bytes, and goes on."""

from __future__ import annotations

import importlib
import json
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from redis.asyncio import Redis

from deskwire.chat.v1.conversation_pb2 import Content
from deskwire_common.auth import ANY_TENANT, Role, TokenSigner
from deskwire_common.lifecycle import Runtime, running
from deskwire_common.migrations import migrate
from deskwire_common.ownership import Owner
from deskwire_common.pagination import ANSWER_BYTES
from support.contract import METHODS

WIDE = "\U0001f642"  # four bytes
MANY = 600
TICKET = TALK = "0199aaaa-0000-7000-8000-000000000000"
LISTS = {m.full_name: m for m in METHODS if "next_page_token" in m.output_type.fields_by_name}


def uuid(number: int) -> str:
    return f"0199bbbb-0000-7000-8000-{number:012x}"


Row = dict[str, Any]


@dataclass(frozen=True)
class Listing:
    """How a list gets MANY rows as long as they may be, and is asked for them."""

    rows: Callable[[int], dict[str, Row]]
    """Table → the columns of row `number` that matter here; the others are 0 or empty."""
    largest: int = 500
    request: dict[str, Any] = field(default_factory=dict)
    role: Role = Role.OPERATOR
    tenant: str = ""
    once: dict[str, Row] = field(default_factory=dict)


def ticket(number: int) -> dict[str, Row]:
    return {
        "tickets": {
            "ticket_id": uuid(number),
            "number": number + 1,
            "state": 2,
            "priority": 1,
            "subject": WIDE * 200,
            "description": WIDE * 8_000,
            "resolution": WIDE * 8_000,
            "assignee_id": "a" * 64,
            "version": 1,
        }
    }


def message(number: int) -> dict[str, Row]:
    row = {
        "conversation_id": TALK,
        "seq": number + 1,
        "message_id": uuid(number),
        "created_at": number,
    }
    return {
        "messages": {
            **row,
            "position": number + 1,
            "sender_role": 1,
            "sender_id": "v" * 64,
            "sender_name": WIDE * 128,
            "client_msg_id": f"{number:060}",
            "body": Content(text=WIDE * 8_000).SerializeToString(),
            "kind": 1,
        },
        "message_search": {**row, "id": number + 1},
        "message_words": {"rowid": number + 1, "words": "wwneedle"},
    }


CONVERSATION = {
    "conversation_id": TALK,
    "state": 1,
    "customer_id": uuid(0),
    "visitor_id": "v1",
    "epoch": 1,
    "version": 1,
}


def wanted(event_types: list[str]) -> str:
    """The filter of a subscription, as its column has it."""
    return json.dumps({"event_types": event_types, "subjects": [], "attributes": {}, "cel": ""})


def adapter(adapter_id: str, number: int) -> Row:
    """The row of an adapter."""
    return {
        "subscription_id": adapter_id,
        "incarnation": uuid(number),
        "kind": "adapter",
        "system_id": "crm:main",
        "filter": wanted([]),
        "sink": json.dumps({"target": "127.0.0.1:1"}),
        "secrets": "{}",
        "state": 1,
        "version": 1,
    }


LISTED: dict[str, Listing] = {
    "deskwire.chat.v1.ConversationService.ListConversations": Listing(
        lambda number: {
            "conversations": {
                **CONVERSATION,
                "conversation_id": uuid(number),
                "created_at": number,
                "visitor_id": "v" * 64,
                "agent_id": "a" * 64,
            }
        }
    ),
    "deskwire.chat.v1.ConversationService.SearchMessages": Listing(
        message,
        largest=100,
        request={"query": "needle"},
        once={"conversations": CONVERSATION},
    ),
    "deskwire.chat.v1.CustomerService.ListCustomers": Listing(
        lambda number: {
            "customers": {
                "customer_id": uuid(number),
                "display_name": WIDE * 128,
                "email": "e" * 254,
                "mobile": "1" * 64,
                "mobile_raw": WIDE * 64,
                "version": 1,
            },
            **{
                f"customer_identities {each}": {
                    "namespace": f"{each:064}",
                    "value": f"{number:08}" + WIDE * 247,
                    "customer_id": uuid(number),
                }
                for each in range(16)
            },
        }
    ),
    "deskwire.chat.v1.AgentService.ListAgents": Listing(
        lambda number: {
            "agents": {"agent_id": f"{number:0255}", "display_name": WIDE * 128, "status": 1}
        }
    ),
    "deskwire.chat.v1.TenantService.ListTenants": Listing(
        lambda number: {"tenants": {"tenant_id": f"{number:064}", "display_name": WIDE * 128}},
        tenant=ANY_TENANT,
    ),
    "deskwire.chat.v1.IntegrationKeyService.ListIntegrationKeys": Listing(
        lambda number: {
            "integration_keys": {
                "key_id": uuid(number),
                "system_id": "s" * 64,
                "display_name": WIDE * 128,
            }
        }
    ),
    "deskwire.tickets.v1.TicketService.ListTickets": Listing(ticket),
    "deskwire.tickets.v1.TicketService.ListTicketAudit": Listing(
        lambda number: {
            "ticket_audit": {
                "ticket_id": TICKET,
                "version": number + 1,
                "action": "ticket_reopened",
                "actor_role": 2,
                "actor_subject": "a" * 64,
                "actor_name": WIDE * 128,
                "to_state": 1,
                "note": WIDE * 8_000,
            }
        },
        request={"ticket_id": TICKET},
        once={"tickets": {**ticket(0)["tickets"], "ticket_id": TICKET}},
    ),
    "deskwire.events.v1.AdapterRegistryService.ListAdapters": Listing(
        lambda number: {
            "subscriptions": {
                **adapter(f"{number:064}", number),
                "sink": json.dumps({"target": "127.0.0.1:1" + "/" * 244, "accepts": []}),
                "filter": wanted([f"{each:064}" for each in range(100)]),
            },
            "progress": {"incarnation": uuid(number), "last_error": WIDE * 500},
        }
    ),
    "deskwire.events.v1.EventHubService.ListSubscriptions": Listing(
        lambda number: {
            "subscriptions": {
                **adapter(f"{number:064}", 500_000 + number),
                "kind": "webhook",
                "sink": json.dumps({"url": "https://127.0.0.1:1/" + "u" * 2_028}),
                "filter": json.dumps(
                    {
                        "event_types": [f"{each:064}" for each in range(100)],
                        "subjects": [WIDE * 80 + f"{each:04}" for each in range(100)],
                        "attributes": {f"{each:020}": WIDE * 64 for each in range(16)},
                        "cel": "e" * 1_000,
                    }
                ),
            },
            "progress": {"incarnation": uuid(500_000 + number), "last_error": WIDE * 500},
        }
    ),
    "deskwire.events.v1.EventHubService.ListDeadLetters": Listing(
        lambda number: {
            "dead": {
                "number": number + 1,
                "incarnation": uuid(999_998),
                "topic": "deskwire.external",
                "partition": 0,
                "position": number,
                "key": b"k",
                "value": b'{"text":"' + b"x" * 20_000 + b'"}',
                "headers": json.dumps(
                    [
                        *(["ce_tenantid", "t"], ["ce_type", "e"], ["ce_id", uuid(number)]),
                        ["content-type", "application/json"],
                    ]
                ).encode(),
                "event_id": uuid(number),
                "event_type": "e" * 64,
                "outcome": 6,
                "detail": WIDE * 500,
            }
        },
        request={"subscription_id": "crm", "json": True},
        once={"subscriptions": adapter("crm", 999_998)},
    ),
    "deskwire.events.v1.AdapterRegistryService.ListDeliveries": Listing(
        lambda number: {
            "deliveries": {
                "number": number + 1,
                "incarnation": uuid(999_999),
                "event_id": uuid(number),
                "event_type": "e" * 64,
                "outcome": 1,
                "detail": WIDE * 500,
            }
        },
        request={"adapter_id": "crm"},
        once={"subscriptions": adapter("crm", 999_999)},
    ),
    "deskwire.cdc.v1.SourceService.ListSources": Listing(
        lambda number: {
            "sources": {
                "incarnation": uuid(number),
                "source_id": f"{number:048}",
                "active": 1,
                "kind": "mariadb",
                "url": "mysql://127.0.0.1:1/" + "d" * 1_000,
                "system_id": "crm:main",
                "tables": json.dumps([WIDE * 60 + f"{each:04}" for each in range(64)]),
                "state": "streaming",
                "last_error": WIDE * 500,
            }
        }
    ),
    # Its rows are in Redis.
    "deskwire.gateway.v1.GatewayService.ListSessions": Listing(lambda number: {}),
}


def test_every_list_is_here() -> None:
    assert set(LISTED) == set(LISTS), "give the new list its longest rows"


@pytest.mark.parametrize("service", sorted({name.split(".")[1] for name in LISTS}))
async def test_the_longest_rows_and_the_largest_page(
    service: str,
    kafka: str,
    valkey: str,
    keys_file: Path,
    signer: TokenSigner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Only its calls: nobody is to push to these adapters, or to read these sources.
    monkeypatch.setattr(Runtime, "spawn", lambda *_: None)
    monkeypatch.setattr(Owner, "employ", lambda *_, **_more: None)
    lists = {name: each for name, each in LISTED.items() if name.split(".")[1] == service}
    if service == "gateway":
        await fill_directory(valkey)
    else:
        await migrate(f"sqlite:///{tmp_path}/{service}.db", f"deskwire_{service}")
        for name, listed in lists.items():
            fill(tmp_path / f"{service}.db", listed, tenant_of(name))
    settings = settings_of(service, kafka, valkey, keys_file, tmp_path)
    build = importlib.import_module(f"deskwire_{service}.app").build
    async with (
        running(service, settings, build) as runtime,
        grpc.aio.insecure_channel(f"127.0.0.1:{runtime.port}") as channel,
    ):
        for name, listed in lists.items():
            token = signer.mint(
                tenant=listed.tenant or tenant_of(name), role=listed.role, subject="me"
            )
            rows = [
                row.SerializeToString()
                async for page in pages(channel, LISTS[name], listed, token)
                for row in page
            ]
            assert len(rows) == MANY, name
            assert len(set(rows)) == MANY, f"{name}: nothing comes twice"


def tenant_of(name: str) -> str:
    """A tenant for each list."""
    return name.rpartition(".")[2].lower()


async def pages(
    channel: grpc.aio.Channel, method: MethodDescriptor, listed: Listing, token: str
) -> Any:
    """The rows of each page to the end."""
    call = channel.unary_unary(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    request: Any = GetMessageClass(method.input_type)(page_size=listed.largest, **listed.request)
    while True:
        answer: Any = await call(request, metadata=[("authorization", f"Bearer {token}")])
        assert answer.ByteSize() < ANSWER_BYTES + 4_096
        found = rows_of(answer)
        assert found, "a page has at least one row"
        yield found
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token


def rows_of(answer: Message) -> list[Message]:
    (found,) = [value for each, value in answer.ListFields() if each.name != "next_page_token"]
    return list(found)


def settings_of(service: str, kafka: str, valkey: str, keys_file: Path, folder: Path) -> Any:
    values: dict[str, Any] = {"grpc_listen": "127.0.0.1:0", "keys_file": keys_file}
    if service == "gateway":
        values |= {"ws_listen": "127.0.0.1:0", "redis_url": valkey}
    else:
        values |= {"database_url": f"sqlite:///{folder}/{service}.db", "kafka": kafka}
    if service in {"gateway", "tickets", "cdc"}:
        values["chat_target"] = "127.0.0.1:1"
    return importlib.import_module(f"deskwire_{service}.config").Settings(**values)


def fill(file: Path, listed: Listing, tenant: str) -> None:
    """Write the rows, as no call would take so many in a test's time."""
    with sqlite3.connect(file) as database:
        insert(database, listed.once.items(), tenant)
        for number in range(MANY):
            insert(database, listed.rows(number).items(), tenant)


def insert(database: sqlite3.Connection, rows: Iterable[tuple[str, Row]], tenant: str) -> None:
    """What a row doesn't say is empty."""
    for key, given in rows:
        table = key.partition(" ")[0]
        row = dict(given)
        for _, column, kind, needed, default, _ in database.execute(f"PRAGMA table_info({table})"):
            if needed and default is None and column not in row:
                row[column] = tenant if column == "tenant_id" else empty(kind)
        marks = ", ".join("?" * len(row))
        database.execute(
            f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", list(row.values())
        )


def empty(kind: str) -> Any:
    """A value of a column's type."""
    if "CHAR" in kind or "TEXT" in kind:
        return ""
    return b"" if "BLOB" in kind or "BINARY" in kind else 0


async def fill_directory(url: str) -> None:
    """Sessions of a worker that is gone."""
    key = "deskwire:sessions:listsessions"
    async with Redis.from_url(url) as redis:
        await redis.sadd(key, "worker")
        entry = json.dumps([2, "a" * 64, WIDE * 128, "c" * 128, 1])
        for number in range(MANY):
            await redis.hset(f"{key}:worker", uuid(number), entry)
