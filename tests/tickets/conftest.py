"""A running ticket service, beside a chat that is just large enough for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from deskwire.chat.v1 import (
    conversation_pb2,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
)
from deskwire.common.v1 import error_reason_pb2
from deskwire.tickets.v1 import ticket_service_pb2_grpc
from deskwire_common import rpc
from deskwire_common.auth import (
    KeySet,
    Role,
    TokenSigner,
    TokenVerifier,
    current_principal,
    tenant_disabled,
)
from deskwire_common.errors import NotFound
from deskwire_common.lifecycle import running
from deskwire_common.migrations import migrate
from deskwire_common.validation import Validator
from deskwire_tickets.app import build
from deskwire_tickets.config import Settings

CHAT = "deskwire.chat.v1.ConversationService"


class Chat(conversation_service_pb2_grpc.ConversationServiceServicer):
    """Conversations by (tenant, conversation_id), with their customers."""

    def __init__(self) -> None:
        self.customers: dict[tuple[str, str], str] = {}
        self.calls = 0
        self.target = ""
        self.disabled = ""
        """A tenant that is disabled, which the ticket service hasn't heard of."""

    async def GetConversation(self, request: Any, _context: object) -> Any:  # noqa: N802
        self.calls += 1
        principal = current_principal()
        assert principal.role is Role.SERVICE
        if principal.tenant == self.disabled:
            raise tenant_disabled(principal.tenant)
        customer = self.customers.get((principal.tenant, request.conversation_id))
        if customer is None:
            reason = error_reason_pb2.ERROR_REASON_CONVERSATION_NOT_FOUND
            raise NotFound("no such conversation", reason=reason)
        return conversation_service_pb2.GetConversationResponse(
            conversation=conversation_pb2.Conversation(
                conversation_id=request.conversation_id, customer_id=customer
            )
        )


@pytest.fixture
async def chat(keys_file: Path) -> AsyncIterator[Chat]:
    servicer = Chat()

    def register(server: grpc.aio.Server) -> None:
        conversation_service_pb2_grpc.add_ConversationServiceServicer_to_server(servicer, server)

    server = await rpc.start_server(
        listen="127.0.0.1:0",
        registrars=[register],
        services=[CHAT],
        authorization=dict.fromkeys(rpc.methods_of([CHAT]), frozenset({Role.SERVICE})),
        verifier=TokenVerifier(KeySet.load(keys_file)),
        validator=Validator(),
    )
    servicer.target = f"127.0.0.1:{server.port}"
    yield servicer
    await server.stop(0)


@dataclass
class Client:
    """Calls the service as somebody: `client(tenant=…, role=…)` is the stub of a token."""

    target: str
    signer: TokenSigner
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def __call__(
        self,
        *,
        tenant: str = "demo",
        role: Role = Role.AGENT,
        subject: str = "alice",
        system: str = "",
    ) -> Any:
        token = self.signer.mint(
            tenant=tenant, role=role, subject=subject, system=system, name=subject.title()[:128]
        )
        channel = rpc.make_channel(self.target, token=lambda: token)
        self.channels.append(channel)
        return ticket_service_pb2_grpc.TicketServiceStub(channel)


Start = Callable[[str], AbstractAsyncContextManager[Client]]


@pytest.fixture
def start(kafka: str, keys_file: Path, signer: TokenSigner, chat: Chat) -> Start:
    """`async with start(database_url) as client`: the service, on a migrated database."""

    @asynccontextmanager
    async def started(database_url: str) -> AsyncIterator[Client]:
        await migrate(database_url, "deskwire_tickets")
        settings = Settings(
            grpc_listen="127.0.0.1:0",
            keys_file=keys_file,
            database_url=database_url,
            kafka=kafka,
            chat_target=chat.target,
        )
        async with running("tickets", settings, build) as runtime:
            client = Client(f"127.0.0.1:{runtime.port}", signer)
            yield client
            for channel in client.channels:
                await channel.close()

    return started


@pytest.fixture
async def client(start: Start, tmp_path: Path) -> AsyncIterator[Client]:
    """The service on SQLite."""
    async with start(f"sqlite:///{tmp_path / 'tickets.db'}") as client:
        yield client
