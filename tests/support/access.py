"""Helpers for tenants, agents and keys of a running desk, as operators manage them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from deskwire.chat.v1 import (
    agent_service_pb2_grpc,
    conversation_service_pb2_grpc,
    integration_key_service_pb2_grpc,
    tenant_service_pb2_grpc,
)
from deskwire.gateway.v1 import frame_pb2, gateway_service_pb2_grpc
from deskwire_common import events
from deskwire_common.auth import ANY_TENANT, Role
from deskwire_common.db import Database
from deskwire_common.kafka import Reader
from deskwire_common.rpc import make_channel
from support.suite import Desk


@dataclass(frozen=True)
class Access:
    """Stubs of chat for operators and others."""

    desk: Desk
    database_url: str
    kafka: str

    def tenants(self, role: Role = Role.OPERATOR, tenant: str = ANY_TENANT) -> Any:
        channel = self.desk.channel(role, "root", tenant=tenant)
        return tenant_service_pb2_grpc.TenantServiceStub(channel)

    def agents(
        self, role: Role = Role.OPERATOR, subject: str = "olga", tenant: str = ""
    ) -> agent_service_pb2_grpc.AgentServiceAsyncStub:
        channel = self.desk.channel(role, subject, tenant=tenant or self.desk.tenant)
        return agent_service_pb2_grpc.AgentServiceStub(channel)

    def keys(
        self, role: Role = Role.OPERATOR, tenant: str = ""
    ) -> integration_key_service_pb2_grpc.IntegrationKeyServiceAsyncStub:
        channel = self.desk.channel(role, "olga", tenant=tenant or self.desk.tenant)
        return integration_key_service_pb2_grpc.IntegrationKeyServiceStub(channel)

    def anyone(self) -> integration_key_service_pb2_grpc.IntegrationKeyServiceAsyncStub:
        """Return a stub without a token."""
        channel = make_channel(self.chat)
        self.desk.stack.push_async_callback(channel.close)
        return integration_key_service_pb2_grpc.IntegrationKeyServiceStub(channel)

    def conversations(
        self, role: Role, subject: str, tenant: str = ""
    ) -> conversation_service_pb2_grpc.ConversationServiceAsyncStub:
        channel = self.desk.channel(role, subject, tenant=tenant or self.desk.tenant)
        return conversation_service_pb2_grpc.ConversationServiceStub(channel)

    @property
    def chat(self) -> str:
        return f"127.0.0.1:{self.desk.chat.port}"

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Database]:
        """Open chat's database as another process would."""
        db = await Database.open(self.database_url)
        yield db
        await db.close()

    async def goodbye(self, role: Role, subject: str) -> frame_pb2.Goodbye:
        """Return the Goodbye that ends a new connection."""
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.desk.gateway.port}")
        async with channel, asyncio.timeout(10):
            call = gateway_service_pb2_grpc.GatewayServiceStub(channel).Connect()
            hello = frame_pb2.Hello(token=self.desk.token(role, subject))
            await call.write(frame_pb2.Batch(frames=[frame_pb2.Frame(hello=hello)]))
            async for batch in call:
                for frame in batch.frames:
                    if frame.HasField("goodbye"):
                        return frame.goodbye
        raise AssertionError("it ended without a Goodbye")

    async def events(self, topic: str, count: int) -> list[Any]:
        """Return the first events of the desk's tenant on a topic; those of one subject are in order."""
        reader = Reader(self.kafka, [topic])
        await reader.start()
        found: list[Any] = []
        try:
            async with asyncio.timeout(20):
                while len(found) < count:
                    for record in await reader.read():
                        event = events.decode(topic, record.value, record.headers)
                        if event.tenant_id == self.desk.tenant:
                            found.append(event)
        finally:
            await reader.close()
        return found
