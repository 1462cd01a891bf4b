"""The contract keeps the rules it states: exhaustive, by reflection over every descriptor."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import Default

ROOT = Path(__file__).resolve().parents[2]
DESCRIPTORS = files("deskwire") / "contract" / "descriptors.binpb"

# Who serves what: the module that holds the service's AUTHORIZATION table.
SERVED_BY = {
    "deskwire.gateway.v1.GatewayService": "deskwire_gateway.api",
    "deskwire.chat.v1.ConversationService": "deskwire_chat.api",
    "deskwire.chat.v1.AttachmentService": "deskwire_chat.api",
    "deskwire.chat.v1.CustomerService": "deskwire_chat.api",
    "deskwire.chat.v1.AgentService": "deskwire_chat.api",
    "deskwire.chat.v1.TenantService": "deskwire_chat.api",
    "deskwire.chat.v1.IntegrationKeyService": "deskwire_chat.api",
    "deskwire.shard.v1.ShardService": "deskwire_chat.api",
    "deskwire.tickets.v1.TicketService": "deskwire_tickets.api",
    "deskwire.events.v1.EventHubService": "deskwire_events.api",
    "deskwire.events.v1.AdapterRegistryService": "deskwire_events.api",
    "deskwire.cdc.v1.SourceService": "deskwire_cdc.api",
}
# Implemented by integrators, called by the hub: the adapter decides who may call it.
IMPLEMENTED_OUTSIDE = {"deskwire.adapters.v1.SystemAdapterService"}

READS = (
    *("Get", "List", "Lookup", "Search", "Watch", "Subscribe"),
    *("Connect", "Link", "Schema", "Auth", "Exchange"),
)
# What a mutating call publishes; a new one without an entry fails the test.
PUBLISHES = {
    "ConversationService.SendMessage": {
        "message_sent",
        "message_edited",
        "message_redacted",
        "note_added",
    },
    "ConversationService.StreamMessages": {
        "message_sent",
        "message_edited",
        "message_redacted",
        "note_added",
    },
    "ConversationService.CloseConversation": {"conversation_closed"},
    "ConversationService.TransferConversation": {"conversation_transferred"},
    # message_sent carries it.
    "AttachmentService.CreateAttachment": set(),
    "AttachmentService.CompleteAttachment": set(),
    "CustomerService.UpdateCustomer": {"customer_updated"},
    "CustomerService.UpsertCustomer": {"customer_created", "customer_updated"},
    "AgentService.SetAgentStatus": {"agent_status_changed"},
    "AgentService.AcceptOffer": {"conversation_assigned"},
    "AgentService.DeclineOffer": set(),  # of no business to anybody: the next is asked
    "AgentService.CreateAgent": {"agent_created"},
    "AgentService.DisableAgent": {"agent_disabled"},
    "AgentService.EnableAgent": {"agent_enabled"},
    "TenantService.CreateTenant": {"tenant_created"},
    "TenantService.DisableTenant": {"tenant_disabled"},
    "TenantService.EnableTenant": {"tenant_enabled"},
    "IntegrationKeyService.CreateIntegrationKey": {"integration_key_created"},
    "IntegrationKeyService.RevokeIntegrationKey": {"integration_key_revoked"},
    "TicketService.CreateTicket": {"ticket_created"},
    "TicketService.SolveTicket": {"ticket_solved"},
    "TicketService.ReopenTicket": {"ticket_reopened"},
    "EventHubService.Publish": set(),  # the caller's own types, on deskwire.external
    "AdapterRegistryService.RegisterAdapter": {"adapter_registered"},
    "AdapterRegistryService.RemoveAdapter": {"adapter_removed"},
    "SourceService.CreateSource": {"source_created"},
    "SourceService.DeleteSource": {"source_deleted"},
    "SystemAdapterService.Push": set(),  # the system's own matter
}


def load_set() -> descriptor_pb2.FileDescriptorSet:
    return descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())


def our_files() -> list[descriptor_pb2.FileDescriptorProto]:
    return [file for file in load_set().file if file.name.startswith("deskwire/")]


def methods() -> list[MethodDescriptor]:
    for file in our_files():
        importlib.import_module(file.name.removesuffix(".proto").replace("/", ".") + "_pb2")
    return [
        method
        for file in our_files()
        for service in file.service
        for method in Default().FindServiceByName(f"{file.package}.{service.name}").methods
    ]


METHODS = methods()


def short(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}.{method.name}"


def mutates(method: MethodDescriptor) -> bool:
    return not method.name.startswith(READS)


@pytest.mark.parametrize("method", METHODS, ids=short)
def test_every_rpc_has_an_authorisation_rule(method: MethodDescriptor) -> None:
    service = method.containing_service.full_name
    if service in IMPLEMENTED_OUTSIDE:
        return
    table = importlib.import_module(SERVED_BY[service]).AUTHORIZATION
    roles = table[f"/{service}/{method.name}"]
    assert roles, f"{method.full_name}: nobody may call it"


def test_no_authorisation_rule_without_an_rpc() -> None:
    known = {f"/{m.containing_service.full_name}/{m.name}" for m in METHODS}
    for module in set(SERVED_BY.values()):
        assert set(importlib.import_module(module).AUTHORIZATION) <= known


@pytest.mark.parametrize("method", [m for m in METHODS if mutates(m)], ids=short)
def test_every_mutating_rpc_is_idempotent_and_publishes(method: MethodDescriptor) -> None:
    assert short(method) in PUBLISHES, "say which events it publishes"
    if method.containing_service.full_name in IMPLEMENTED_OUTSIDE:
        return
    names = set(method.input_type.fields_by_name)
    if method.client_streaming:
        # Each of what a request brings is idempotent by itself.
        for field in method.input_type.fields:
            names.update(field.message_type.fields_by_name if field.message_type else ())
    assert names & {"request_id", "client_msg_id"}, "a mutating request needs a request_id"


def test_events_and_topics_agree() -> None:
    from deskwire_common.events import data_class
    from deskwire_common.topics import TOPICS

    on_topics = {event for topic in TOPICS.values() for event in topic.event_types}
    assert set().union(*PUBLISHES.values()) <= on_topics
    for event_type in on_topics:
        camel = "".join(part.title() for part in event_type.split("_"))
        assert data_class(event_type).DESCRIPTOR.full_name == f"deskwire.events.v1.{camel}"


def test_counters_are_json_numbers() -> None:
    wide = [
        f"{message.name}.{field.name}"
        for file in our_files()
        for message in file.message_type
        for field in message.field
        if field.name in {"seq", "version", "sequence", "epoch", "head_seq", "timestamp"}
        and field.type != descriptor_pb2.FieldDescriptorProto.TYPE_UINT32
    ]
    assert wide == []


def test_packages_import_each_other_without_a_circle() -> None:
    imports: dict[str, set[str]] = {}
    package = {file.name: file.package for file in load_set().file}
    for file in our_files():
        imports.setdefault(file.package, set()).update(
            package[name] for name in file.dependency if package[name] != file.package
        )

    def reach(start: str) -> set[str]:
        found: set[str] = set()
        todo = [start]
        while todo:
            for name in imports.get(todo.pop(), ()):
                if name not in found:
                    found.add(name)
                    todo.append(name)
        return found

    assert [name for name in imports if name in reach(name)] == []


def test_the_breaking_check_fails_on_a_removed_field(tmp_path: Path) -> None:
    mutated = load_set()
    ticket = next(
        message
        for file in mutated.file
        if file.name == "deskwire/tickets/v1/ticket.proto"
        for message in file.message_type
        if message.name == "Ticket"
    )
    removed = ticket.field.pop()
    broken = tmp_path / "mutated.binpb"
    broken.write_bytes(mutated.SerializeToString())
    buf = Path(sys.executable).parent / "buf"

    def breaking(image: str) -> subprocess.CompletedProcess[str]:
        command = [buf, "breaking", image, "--against", ROOT / "protos" / "released.binpb"]
        return subprocess.run(
            [*command, "--config", ROOT / "buf.yaml"], capture_output=True, text=True, check=False
        )

    assert breaking(str(DESCRIPTORS)).returncode == 0
    refused = breaking(str(broken))
    assert refused.returncode != 0
    assert removed.name in refused.stdout + refused.stderr
