"""The contract as tests check it: every RPC, which service serves it, and what mutating RPCs publish."""

from __future__ import annotations

import importlib
from importlib.resources import files
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import Default

ROOT = Path(__file__).resolve().parents[2]
DESCRIPTORS = files("deskwire") / "contract" / "descriptors.binpb"

# Service → the module with its AUTHORIZATION table.
SERVED_BY = {
    "deskwire.gateway.v1.GatewayService": "deskwire_gateway.api",
    "deskwire.chat.v1.ConversationService": "deskwire_chat.api",
    "deskwire.chat.v1.AttachmentService": "deskwire_chat.api",
    "deskwire.chat.v1.CustomerService": "deskwire_chat.api",
    "deskwire.chat.v1.AgentService": "deskwire_chat.api",
    "deskwire.chat.v1.HistoryService": "deskwire_chat.api",
    "deskwire.chat.v1.TenantService": "deskwire_chat.api",
    "deskwire.chat.v1.IntegrationKeyService": "deskwire_chat.api",
    "deskwire.shard.v1.ShardService": "deskwire_chat.api",
    "deskwire.tickets.v1.TicketService": "deskwire_tickets.api",
    "deskwire.events.v1.EventHubService": "deskwire_events.api",
    "deskwire.events.v1.AdapterRegistryService": "deskwire_events.api",
    "deskwire.cdc.v1.SourceService": "deskwire_cdc.api",
}
# Integrators implement these and the hub calls them: the adapter decides who may call it.
IMPLEMENTED_OUTSIDE = {"deskwire.adapters.v1.SystemAdapterService"}

READS = (
    *("Get", "List", "Lookup", "Search", "Watch", "Subscribe"),
    *("Connect", "Link", "Schema", "Auth", "Check", "Exchange"),
)
# The events that a mutating call publishes; a new call without an entry fails the test.
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
    # message_sent carries the attachment.
    "AttachmentService.CreateAttachment": set(),
    "AttachmentService.CompleteAttachment": set(),
    "CustomerService.UpdateCustomer": {"customer_updated"},
    "CustomerService.UpsertCustomer": {"customer_created", "customer_updated"},
    "HistoryService.ImportConversation": {
        "conversation_imported",
        "customer_created",
        "customer_updated",
    },
    "AgentService.SetAgentStatus": {"agent_status_changed"},
    "AgentService.AcceptOffer": {"conversation_assigned"},
    "AgentService.DeclineOffer": set(),  # no event: the next agent gets an offer
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
    "EventHubService.CreateSubscription": {"subscription_created"},
    "EventHubService.UpdateSubscription": {"subscription_updated"},
    "EventHubService.PauseSubscription": {"subscription_updated"},
    "EventHubService.ResumeSubscription": {"subscription_updated"},
    "EventHubService.SeekSubscription": {"subscription_updated"},
    "EventHubService.RotateWebhookSecret": {"subscription_updated"},
    "EventHubService.DeleteSubscription": {"subscription_deleted"},
    "EventHubService.RedriveDeadLetters": {"dead_letters_redriven"},
    "EventHubService.PurgeDeadLetters": {"dead_letters_purged"},
    "AdapterRegistryService.RegisterAdapter": {"adapter_registered"},
    "AdapterRegistryService.UpdateAdapter": {"subscription_updated"},
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
        if not file.service:
            continue
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


def served(method: MethodDescriptor) -> bool:
    """Whether the suite serves it."""
    return method.containing_service.full_name in SERVED_BY


def request_bytes_of(method: MethodDescriptor) -> int:
    """The largest request that its server takes."""
    service = method.containing_service.full_name
    table = importlib.import_module(SERVED_BY[service]).TABLE
    limit: int = table.request_bytes[f"/{service}/{method.name}"]
    return limit
