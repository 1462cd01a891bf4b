"""The desk of a walk: its one agent, without open conversations."""

from __future__ import annotations

import uuid
from typing import Final

import grpc

from deskwire.chat.v1 import (
    agent_pb2,
    agent_service_pb2,
    agent_service_pb2_grpc,
    conversation_pb2,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
)

AGENT: Final = "alice"


async def set_status(chat: grpc.aio.Channel, status: agent_pb2.AgentStatus.ValueType) -> None:
    """Let the agent take conversations, or none."""
    await agent_service_pb2_grpc.AgentServiceStub(chat).SetAgentStatus(
        agent_service_pb2.SetAgentStatusRequest(
            request_id=str(uuid.uuid4()), status=status, display_name="Alice"
        )
    )


async def close_conversations(chat: grpc.aio.Channel) -> None:
    """Close all conversations of the agent, also those of an earlier walk that was broken off."""
    stub = conversation_service_pb2_grpc.ConversationServiceStub(chat)
    active = await stub.ListConversations(
        conversation_service_pb2.ListConversationsRequest(
            states=[conversation_pb2.CONVERSATION_STATE_ACTIVE], agent_id=AGENT
        )
    )
    for conversation in active.conversations:
        await stub.CloseConversation(
            conversation_service_pb2.CloseConversationRequest(
                request_id=str(uuid.uuid4()),
                conversation_id=conversation.conversation_id,
                expected_version=conversation.version,
            )
        )
