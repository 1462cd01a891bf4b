"""Rules that hold for every RPC alike: tenants don't see each other, page tokens and request ids are one call's own."""

from __future__ import annotations

import importlib
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import Default
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass

from deskwire.adapters.v1 import system_adapter_service_pb2, system_adapter_service_pb2_grpc
from deskwire_cli.launch import Launch
from deskwire_client import Client
from deskwire_common.auth import ANY_TENANT, KeySet, Role, TokenSigner
from deskwire_common.errors import from_rpc_error
from support import eventually
from support.files import PICTURE, http
from support.suite import new_id

Body = dict[str, Any]

#: Operators of the suite call these, of all tenants.
TENANTS = "chat.v1.TenantService"
#: Fields that name one thing which a tenant has.
IDS = frozenset(
    {
        *("conversation_id", "customer_id", "ticket_id", "adapter_id", "source_id", "key_id"),
        *("agent_id", "attachment_id", "subscription_id"),
    }
)


def methods() -> dict[str, tuple[str, MethodDescriptor, frozenset[Role]]]:
    """Every unary RPC of the suite, without `deskwire.`: its service, descriptor and callers."""
    found = {}
    for service in ("gateway", "chat", "tickets", "events", "cdc"):
        for path, roles in importlib.import_module(f"deskwire_{service}.api").AUTHORIZATION.items():
            _, name, method = path.split("/")
            descriptor: ServiceDescriptor = Default().FindServiceByName(name)
            each = descriptor.methods_by_name[method]
            if not each.server_streaming:
                found[path.removeprefix("/deskwire.")] = (service, each, roles)
    return found


METHODS = methods()


def having(*names: str) -> set[str]:
    """The RPCs whose request has one of the fields."""
    return {
        path
        for path, (_, method, _) in METHODS.items()
        if any(each.name in names for each in method.input_type.fields)
    }


def calls_of(tenant: str) -> dict[str, tuple[Role, Body]]:
    """One call of every RPC, in an order in which all of them succeed; `$name` is an id of an earlier one."""
    operator, visitor, crm = Role.OPERATOR, Role.VISITOR, Role.INTEGRATION
    conversation, ticket = {"conversation_id": "$conversation"}, {"ticket_id": "$ticket"}
    subscription: Body = {"subscription_id": "s-1"}
    adapter = {"adapter_id": "a-1", "system_id": "crm:main", "target": "$adapter"}
    source = {
        "source_id": "s-1",
        "kind": "SOURCE_KIND_SQLITE",
        "url": "$database",
        "system_id": "crm:main",
        "tables": ["orders"],
    }
    row: Body = {"identities": [{"namespace": "crm:main", "value": "4711"}], "display_name": "Li"}
    event = {"event_type": "order_paid", "subject": "o-1", "data": {"amount": 1}}
    picture = {"file_name": "a.png", "content_type": "image/png", "size_bytes": len(PICTURE)}
    attachment = {"attachment_id": "$attachment"}
    written: Body = {"customer_id": "$customer", "display_name": "Li Na"}
    return {
        f"{TENANTS}/CreateTenant": (operator, {"tenant_id": tenant}),
        f"{TENANTS}/GetTenant": (operator, {"tenant_id": tenant}),
        f"{TENANTS}/ListTenants": (operator, {}),
        f"{TENANTS}/DisableTenant": (operator, {"tenant_id": tenant}),
        f"{TENANTS}/EnableTenant": (operator, {"tenant_id": tenant}),
        "chat.v1.AgentService/CreateAgent": (operator, {"agent_id": "bob", "capacity": 1}),
        "chat.v1.AgentService/SetAgentStatus": (
            Role.AGENT,
            {"status": "AGENT_STATUS_AVAILABLE", "capacity": 5},
        ),
        "chat.v1.AgentService/GetAgent": (operator, {"agent_id": "bob"}),
        "chat.v1.AgentService/ListAgents": (operator, {}),
        "chat.v1.AgentService/DisableAgent": (operator, {"agent_id": "bob"}),
        "chat.v1.AgentService/EnableAgent": (operator, {"agent_id": "bob"}),
        "chat.v1.IntegrationKeyService/CreateIntegrationKey": (operator, {"system_id": "crm:main"}),
        "chat.v1.IntegrationKeyService/ListIntegrationKeys": (operator, {}),
        "chat.v1.IntegrationKeyService/ExchangeIntegrationKey": (operator, {"secret": "$secret"}),
        "chat.v1.IntegrationKeyService/RevokeIntegrationKey": (operator, {"key_id": "$key"}),
        "chat.v1.ConversationService/SendMessage": (
            visitor,
            {"conversation_id": new_id(), "client_msg_id": "1", "content": {"text": "hello"}},
        ),
        "chat.v1.AgentService/AcceptOffer": (Role.AGENT, conversation),
        "chat.v1.ConversationService/GetConversation": (operator, conversation),
        "chat.v1.ConversationService/ListConversations": (operator, {}),
        "chat.v1.ConversationService/ListMessages": (operator, conversation),
        "chat.v1.ConversationService/SearchMessages": (operator, {"query": "hello"}),
        "chat.v1.AttachmentService/CreateAttachment": (visitor, {**conversation, **picture}),
        "chat.v1.AttachmentService/CompleteAttachment": (visitor, attachment),
        "chat.v1.AttachmentService/GetAttachment": (visitor, attachment),
        "chat.v1.CustomerService/GetCustomer": (operator, {"customer_id": "$customer"}),
        "chat.v1.CustomerService/ListCustomers": (operator, {}),
        "chat.v1.CustomerService/LookupCustomer": (
            operator,
            {"identity": {"namespace": "visitor", "value": "me"}},
        ),
        "chat.v1.CustomerService/UpdateCustomer": (
            operator,
            {"customer": written, "update_mask": "displayName"},
        ),
        "chat.v1.CustomerService/UpsertCustomer": (
            crm,
            {"customer": row, "update_mask": "displayName"},
        ),
        "chat.v1.HistoryService/ImportConversation": (
            operator,
            {
                "source": "old",
                "external_id": "1",
                "customer": row,
                "messages": [
                    {
                        "external_id": "1",
                        "sender_role": "ROLE_VISITOR",
                        "content": {"text": "hello"},
                        "sent_time": "2019-05-04T08:15:00Z",
                    }
                ],
            },
        ),
        "tickets.v1.TicketService/CreateTicket": (operator, {**conversation, "subject": "Late"}),
        "tickets.v1.TicketService/GetTicket": (operator, ticket),
        "tickets.v1.TicketService/ListTickets": (operator, {}),
        "tickets.v1.TicketService/SolveTicket": (operator, ticket),
        "tickets.v1.TicketService/ReopenTicket": (operator, {**ticket, "reason": "not yet"}),
        "tickets.v1.TicketService/ListTicketAudit": (operator, ticket),
        "chat.v1.ConversationService/TransferConversation": (
            operator,
            {**conversation, "agent_id": ""},
        ),
        "chat.v1.AgentService/DeclineOffer": (Role.AGENT, conversation),
        "chat.v1.ConversationService/CloseConversation": (operator, conversation),
        "gateway.v1.GatewayService/ListSessions": (operator, {}),
        "events.v1.EventHubService/Publish": (crm, {"events": [event]}),
        "events.v1.EventHubService/ListEventTypes": (operator, {}),
        "events.v1.EventHubService/CreateSubscription": (
            operator,
            {"subscription": {**subscription, "webhook": {"url": "https://127.0.0.1:1/"}}},
        ),
        "events.v1.EventHubService/GetSubscription": (operator, subscription),
        "events.v1.EventHubService/ListSubscriptions": (operator, {}),
        "events.v1.EventHubService/UpdateSubscription": (
            operator,
            {**subscription, "filter": {"event_types": ["order_paid"]}},
        ),
        "events.v1.EventHubService/PauseSubscription": (operator, subscription),
        "events.v1.EventHubService/SeekSubscription": (
            operator,
            {**subscription, "start": {"earliest": {}}},
        ),
        "events.v1.EventHubService/ResumeSubscription": (operator, subscription),
        "events.v1.EventHubService/RotateWebhookSecret": (operator, subscription),
        "events.v1.EventHubService/CheckWebhook": (operator, subscription),
        "events.v1.EventHubService/ListDeadLetters": (operator, subscription),
        "events.v1.EventHubService/RedriveDeadLetters": (operator, subscription),
        "events.v1.EventHubService/PurgeDeadLetters": (operator, subscription),
        "events.v1.AdapterRegistryService/RegisterAdapter": (crm, {"adapter": adapter}),
        "events.v1.AdapterRegistryService/UpdateAdapter": (crm, {"adapter": adapter}),
        "events.v1.AdapterRegistryService/GetAdapter": (operator, {"adapter_id": "a-1"}),
        "events.v1.AdapterRegistryService/ListAdapters": (operator, {}),
        "events.v1.AdapterRegistryService/ListDeliveries": (operator, {"adapter_id": "a-1"}),
        "cdc.v1.SourceService/CreateSource": (operator, {"source": source}),
        "cdc.v1.SourceService/GetSource": (operator, {"source_id": "s-1"}),
        "cdc.v1.SourceService/ListSources": (operator, {}),
        "cdc.v1.SourceService/DeleteSource": (operator, {"source_id": "s-1"}),
        "events.v1.AdapterRegistryService/RemoveAdapter": (operator, {"adapter_id": "a-1"}),
        "events.v1.EventHubService/DeleteSubscription": (operator, subscription),
    }


#: What makes another request of one that has been made.
OTHER: Mapping[str, Body] = {
    "CreateTenant": {"display_name": "another"},
    "CreateAgent": {"display_name": "another"},
    "SetAgentStatus": {"capacity": 9},
    "CreateIntegrationKey": {"display_name": "another"},
    "CreateAttachment": {"file_name": "another.png"},
    "CompleteAttachment": {"attachment_id": new_id()},
    "UpdateCustomer": {"update_mask": "email"},
    "UpsertCustomer": {"update_mask": "email"},
    "CreateTicket": {"subject": "another"},
    "SolveTicket": {"resolution": "another"},
    "ReopenTicket": {"reason": "another"},
    "Publish": {"events": [{"event_type": "order_paid", "subject": "o-2"}]},
    "TransferConversation": {"agent_id": "bob"},
    "AcceptOffer": {"conversation_id": new_id()},
    "DeclineOffer": {"conversation_id": new_id()},
    "RegisterAdapter": {
        "adapter": {"adapter_id": "a-2", "system_id": "crm:main", "target": "127.0.0.1:1"}
    },
    "CreateSource": {
        "source": {
            "source_id": "s-2",
            "kind": "SOURCE_KIND_SQLITE",
            "url": "sqlite:////nowhere.db",
            "system_id": "crm:main",
            "tables": ["orders"],
        }
    },
    "RemoveAdapter": {"adapter_id": "a-2"},
    "UpdateAdapter": {"expected_version": 9},
    "CreateSubscription": {"subscription": {"subscription_id": "s-2"}},
    "UpdateSubscription": {"filter": {"event_types": ["another"]}},
    "PauseSubscription": {"expected_version": 9},
    "ResumeSubscription": {"expected_version": 9},
    "SeekSubscription": {"start": {"latest": {}}},
    "DeleteSubscription": {"expected_version": 9},
    "RedriveDeadLetters": {"event_types": ["another"]},
    "PurgeDeadLetters": {"event_types": ["another"]},
    "DeleteSource": {"source_id": "s-2"},
    "RevokeIntegrationKey": {"key_id": new_id()},
}


class Taker(system_adapter_service_pb2_grpc.SystemAdapterServiceServicer):
    """The least that an adapter can be."""

    async def Schema(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        return system_adapter_service_pb2.SchemaResponse(adapter="test/1")

    async def Auth(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        return system_adapter_service_pb2.AuthResponse(session="s")


@dataclass
class Suite:
    """The running services, called by path with JSON."""

    launch: Launch
    signer: TokenSigner
    channels: dict[str, grpc.aio.Channel]
    ids: dict[str, str]
    stack: AsyncExitStack
    done: dict[str, tuple[Role, Body]] = field(default_factory=dict)

    async def call(
        self, path: str, role: Role, body: Body, *, tenant: str
    ) -> tuple[str, str, Body]:
        """Code, reason and answer."""
        service, method, _ = METHODS[path]
        suite = path.startswith(TENANTS)
        token = self.signer.mint(
            tenant=ANY_TENANT if suite else tenant,
            role=role,
            subject="me",
            system="crm:main" if role is Role.INTEGRATION else "",
        )
        answer = GetMessageClass(method.output_type)
        call = self.channels[service].unary_unary(
            f"/deskwire.{path}", response_deserializer=answer.FromString
        )
        request = ParseDict(self._with_ids(body), GetMessageClass(method.input_type)())
        try:
            response = await call(
                request.SerializeToString(),
                metadata=[("authorization", f"Bearer {token}")],
                timeout=30,
            )
        except grpc.aio.AioRpcError as error:
            return error.code().name, from_rpc_error(error).reason_name, {}
        return "OK", "", MessageToDict(response, preserving_proto_field_name=True)

    def _with_ids(self, body: Any) -> Any:
        if isinstance(body, dict):
            return {key: self._with_ids(value) for key, value in body.items()}
        if isinstance(body, list):
            return [self._with_ids(each) for each in body]
        return self.ids[body[1:]] if isinstance(body, str) and body.startswith("$") else body

    async def learn(self, path: str, answer: Body) -> None:
        """Take the ids of what was made."""
        method = path.rpartition("/")[2]
        if method == "SendMessage":
            self.ids["conversation"] = answer["message"]["conversation_id"]
        elif method == "GetConversation":
            self.ids["customer"] = answer["conversation"]["customer_id"]
        elif method == "CreateTicket":
            self.ids["ticket"] = answer["ticket"]["ticket_id"]
        elif method == "CreateAttachment":
            self.ids["attachment"] = answer["attachment"]["attachment_id"]
            headers = {each["name"]: each["value"] for each in answer["upload"]["headers"]}
            assert (await http("PUT", answer["upload"]["url"], PICTURE, headers)).status == 200
        elif method == "CreateIntegrationKey":
            self.ids["key"] = answer["key"]["key_id"]
            self.ids["secret"] = answer["secret"]

    async def be_there(self, tenant: str) -> None:
        """Have an agent connect, so that conversations are offered to them."""
        url = f"ws://{self.launch.plan.ports.address('websocket')}/ws"
        token = self.signer.mint(tenant=tenant, role=Role.AGENT, subject="me")
        await self.stack.enter_async_context(Client(url, token))
        agents = "chat.v1.AgentService"
        status = {"status": "AGENT_STATUS_AVAILABLE", "request_id": "there"}
        assert (await self.call(f"{agents}/SetAgentStatus", Role.AGENT, status, tenant=tenant))[
            0
        ] == "OK"

        async def is_seen() -> bool:
            me = {"agent_id": "me"}
            answer = await self.call(f"{agents}/GetAgent", Role.OPERATOR, me, tenant=tenant)
            return bool(answer[2]["agent"].get("connected"))

        await eventually(is_seen)

    async def everything(self, tenant: str) -> None:
        """Make every call once, each with a request id where the request has one."""
        for path, (role, body) in calls_of(tenant).items():
            if path.endswith("/SendMessage"):
                await self.be_there(tenant)
            named = {"request_id": f"r-{path}"} if path in having("request_id") else {}
            code, reason, answer = await self.call(path, role, {**body, **named}, tenant=tenant)
            assert (code, reason) == ("OK", ""), path
            await self.learn(path, answer)
            self.done[path] = (role, {**body, **named})
        for path in (
            "events.v1.EventHubService/CreateSubscription",
            "events.v1.AdapterRegistryService/RegisterAdapter",
            "cdc.v1.SourceService/CreateSource",
        ):
            # What was removed is there again; its consumer may still be leaving, which is worth another try. One that
            # was removed while it joined leaves with its session's end, after 45 s.
            await eventually(partial(self._again, path, tenant), timeout=70, interval=0.2)

    async def _again(self, path: str, tenant: str) -> bool:
        role, body = self.done[path]
        again = {**body, "request_id": "again"}
        return (await self.call(path, role, again, tenant=tenant))[0] == "OK"


@pytest.fixture
def offers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chat offers conversations: they stand for as long as this takes."""
    monkeypatch.setenv("DESKWIRE_OFFER_SECONDS", "600")


@pytest.fixture
async def suite(offers: None, launch: Launch, tmp_path: Path) -> AsyncIterator[Suite]:
    """All services, with every call made once for tenant `mine`."""
    with sqlite3.connect(tmp_path / "orders.db") as orders:
        orders.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, state TEXT)")
    async with AsyncExitStack() as stack:
        server = grpc.aio.server()
        stack.push_async_callback(server.stop, 0)
        system_adapter_service_pb2_grpc.add_SystemAdapterServiceServicer_to_server(Taker(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        channels = {
            each: await stack.enter_async_context(
                grpc.aio.insecure_channel(launch.plan.ports.address(each))
            )
            for each in ("gateway", "chat", "tickets", "events", "cdc")
        }
        found = Suite(
            launch,
            TokenSigner(KeySet.load(launch.plan.home.keys_file)),
            channels,
            {"adapter": f"127.0.0.1:{port}", "database": f"sqlite:///{tmp_path / 'orders.db'}"},
            stack,
        )
        await found.everything("mine")
        yield found


async def test_every_call_is_known_here() -> None:
    assert set(calls_of("t")) == set(METHODS)


async def a_request_id_is_one_requests_own(suite: Suite) -> None:
    for path in having("request_id"):
        role, body = suite.done[path]
        again = await suite.call(path, role, body, tenant="mine")
        assert again[0] == "OK", (path, again)
        method = path.rpartition("/")[2]
        other = {**body, **OTHER.get(method, {"expected_version": 4711})}
        found = await suite.call(path, role, other, tenant="mine")
        assert found[:2] == ("ALREADY_EXISTS", "REQUEST_ID_REUSED"), path


async def a_page_token_is_one_lists_own(suite: Suite) -> None:
    for path in having("page_token"):
        role, body = suite.done[path]
        for token in ("nonsense", "e30", "?" * 512):
            found = await suite.call(path, role, {**body, "page_token": token}, tenant="mine")
            assert found[:2] == ("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN"), (path, token)


async def a_page_token_of_another_list_is_refused(suite: Suite) -> None:
    agents = "chat.v1.AgentService/ListAgents"
    _, _, page = await suite.call(agents, Role.OPERATOR, {"page_size": 1}, tenant="mine")
    token = page["next_page_token"]
    for path in having("page_token") - {agents}:
        role, body = suite.done[path]
        found = await suite.call(path, role, {**body, "page_token": token}, tenant="mine")
        assert found[:2] == ("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN"), path


async def what_another_tenant_has_does_not_exist(suite: Suite) -> None:
    # The ids of `mine`, in the hands of somebody who may do everything in `theirs`.
    tried = 0
    for path, (role, body) in suite.done.items():
        named = IDS.intersection({*body, *body.get("customer", {})})
        method = path.rpartition("/")[2]
        makes = method.startswith(("Create", "Register"))
        makes = makes and method not in {"CreateTicket", "CreateAttachment"}
        if makes or not named:
            continue
        caller = Role.AGENT if method == "SendMessage" else role
        found = await suite.call(path, caller, body, tenant="theirs")
        assert found[0] == "NOT_FOUND", (path, found)
        assert found[1].endswith("_NOT_FOUND"), (path, found)
        tried += 1
    assert tried > 15
    for path in having("page_token"):
        role, body = suite.done[path]
        if not path.startswith(TENANTS) and not IDS.intersection(body):
            assert await suite.call(path, role, body, tenant="theirs") == ("OK", "", {}), path


async def test_the_rules_of_every_call(suite: Suite) -> None:
    # One suite of five processes for all four: they only look, or are refused.
    await a_request_id_is_one_requests_own(suite)
    await a_page_token_is_one_lists_own(suite)
    await a_page_token_of_another_list_is_refused(suite)
    await what_another_tenant_has_does_not_exist(suite)
