"""Conversations of a desk: visitors open them, and the operator reads them."""

from __future__ import annotations

from typing import Any

from deskwire.chat.v1 import (
    conversation_pb2,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
)
from deskwire_common.auth import Role
from support.suite import Desk, new_id


def operator(d: Desk) -> Any:
    """Return a stub of ConversationService for the tenant's operator."""
    return conversation_service_pb2_grpc.ConversationServiceStub(d.channel(Role.OPERATOR, "olga"))


async def opened(d: Desk, visitor: str = "1001", talk: str = "") -> str:
    """Have a visitor open a conversation; return its id."""
    client = await d.client(Role.VISITOR, visitor)
    talk = talk or new_id()
    await client.send(talk, "hello")
    return talk


async def conversation(d: Desk, talk: str) -> conversation_pb2.Conversation:
    """Return a conversation as it is now."""
    request = conversation_service_pb2.GetConversationRequest(conversation_id=talk)
    found: conversation_pb2.Conversation = (await operator(d).GetConversation(request)).conversation
    return found


async def is_with(d: Desk, talk: str, agent: str) -> bool:
    """Whether the agent has the conversation."""
    return (await conversation(d, talk)).agent_id == agent
