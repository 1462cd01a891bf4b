"""The services of the message path, started inside the test's process on free ports."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc

import deskwire_chat.app
import deskwire_chat.config
import deskwire_gateway.app
import deskwire_gateway.config
from deskwire.chat.v1 import agent_pb2, agent_service_pb2, agent_service_pb2_grpc
from deskwire_chat.domain.messages import Message
from deskwire_chat.owners.ownership import KIND
from deskwire_chat.store import partitions
from deskwire_chat.store.partitions import PARTITION_IDS
from deskwire_chat.views.content import text_content
from deskwire_client import Client
from deskwire_common.auth import Role, TokenSigner
from deskwire_common.db import Database
from deskwire_common.lifecycle import Runtime, running
from deskwire_common.migrations import migrate
from deskwire_common.ownership import spread
from deskwire_common.rpc import make_channel
from support import eventually


def new_id() -> str:
    """Return a new id, as clients make them."""
    return str(uuid.uuid4())


def a_message(**more: Any) -> Message:
    """Return a message as the store has it; fields that aren't given are made up."""
    given: dict[str, Any] = {
        "message_id": new_id(),
        "conversation_id": new_id(),
        "tenant": "demo",
        "seq": 7,
        "position": 9,
        "role": 1,
        "subject": "1001",
        "name": "Li Na",
        "origin": "deskwire",
        "client_msg_id": "m-1",
        "body": text_content("wo ist mein Paket? 🙂"),
        "created_at": 1_795_532_270_765_029,
    }
    return Message(**given | more)


Start = Callable[..., "AbstractAsyncContextManager[Desk]"]
"""Starts a desk, with the given settings for its gateway."""


@dataclass(slots=True)
class Desk:
    """A running chat and gateway, with clients and channels for any user."""

    signer: TokenSigner
    chat: Runtime[Any]
    gateway: Runtime[Any]
    stack: AsyncExitStack
    tenant: str

    @property
    def url(self) -> str:
        """The URL of the gateway's WebSocket."""
        return f"ws://127.0.0.1:{self.gateway.extra_ports['ws']}/ws"

    def token(self, role: Role, subject: str, **more: Any) -> str:
        """Return a token of the desk's tenant."""
        return self.signer.mint(
            tenant=more.pop("tenant", self.tenant), role=role, subject=subject, **more
        )

    async def client(self, role: Role, subject: str, **more: Any) -> Client:
        """Return a connected client, which is closed at the end."""
        on_push: Callable[[Any], None] | None = more.pop("on_push", None)
        options = {name: more.pop(name) for name in ("receipts", "on_signal") if name in more}
        client = Client(self.url, self.token(role, subject, **more), on_push=on_push, **options)
        await client.connect()
        self.stack.push_async_callback(client.close)
        return client

    def channel(self, role: Role, subject: str, *, port: int = 0, **more: Any) -> grpc.aio.Channel:
        """Return a channel to chat (or another port) with a user's token."""
        token = self.token(role, subject, **more)
        channel = make_channel(f"127.0.0.1:{port or self.chat.port}", token=lambda: token)
        self.stack.push_async_callback(channel.close)
        return channel

    def let_pass(self, seconds: float) -> None:
        """Put the services' time of day forward, by which tokens expire; nothing has to wait for it."""
        for runtime in (self.chat, self.gateway):
            runtime.clock.now = partial(_later, runtime.clock.now, seconds)

    async def available(self, agent: str, *, capacity: int = 5) -> None:
        """Set an agent available."""
        stub = agent_service_pb2_grpc.AgentServiceStub(
            self.channel(Role.AGENT, agent, name=agent.title()[:128])
        )
        await stub.SetAgentStatus(
            agent_service_pb2.SetAgentStatusRequest(
                request_id=new_id(), status=agent_pb2.AGENT_STATUS_AVAILABLE, capacity=capacity
            )
        )


def _later(now: Callable[[], datetime], seconds: float) -> datetime:
    return now() + timedelta(seconds=seconds)


def chat_settings(database_url: str, kafka: str, keys_file: Path, **more: Any) -> Any:
    """Return the settings of a chat process on a free port, whose visitors may open any number of conversations."""
    return deskwire_chat.config.Settings(
        grpc_listen=more.pop("grpc_listen", "127.0.0.1:0"),
        keys_file=keys_file,
        database_url=database_url,
        kafka=kafka,
        shard_name=more.pop("shard_name", "chat-0"),
        visitor_max_open=more.pop("visitor_max_open", 0),
        visitor_openings_per_minute=more.pop("visitor_openings_per_minute", 0),
        **more,
    )


def gateway_settings(chat_port: int, valkey: str, keys_file: Path, **more: Any) -> Any:
    """Return the settings of a gateway on free ports."""
    return deskwire_gateway.config.Settings(
        grpc_listen="127.0.0.1:0",
        ws_listen=more.pop("ws_listen", "127.0.0.1:0"),
        keys_file=keys_file,
        chat_target=f"127.0.0.1:{chat_port}",
        redis_url=valkey,
        **more,
    )


@asynccontextmanager
async def desk(
    database_url: str, kafka: str, valkey: str, keys_file: Path, signer: TokenSigner, **gateway: Any
) -> AsyncIterator[Desk]:
    """Run chat and gateway, with a tenant of their own, while the block runs.

    `chat` has settings for chat; everything else is for the gateway.
    """
    await migrate(database_url, "deskwire_chat")
    settings = chat_settings(database_url, kafka, keys_file, **gateway.pop("chat", {}))
    async with (
        running("chat", settings, deskwire_chat.app.build) as chat,
        running(
            "gateway",
            gateway_settings(chat.port, valkey, keys_file, **gateway),
            deskwire_gateway.app.build,
        ) as gateway_runtime,
        AsyncExitStack() as stack,
    ):
        yield Desk(signer, chat, gateway_runtime, stack, f"t-{uuid.uuid4().hex[:12]}")


_OF_TWO: Final = spread(KIND, PARTITION_IDS, ["chat-0", "chat-1"])


def owner_of_two(number: int) -> str:
    """Return which of chat-0 and chat-1 owns a partition while both live."""
    return _OF_TWO[number]


@asynccontextmanager
async def second_process(
    url: str, kafka: str, keys_file: Path, **options: Any
) -> AsyncIterator[Runtime[Any]]:
    """Run chat-1 beside chat-0; yield when it has its share of the partitions."""
    db = await Database.open(url, pool_size=1)
    settings = chat_settings(url, kafka, keys_file, shard_name="chat-1", **options)
    try:
        async with running("chat", settings, deskwire_chat.app.build) as chat:

            async def is_shared() -> bool:
                async with db.read() as c:
                    found = await partitions.ROWS.load(c)
                return all(partition.owner == owner_of_two(partition.id) for partition in found)

            await eventually(is_shared, timeout=30, interval=0.2)
            yield chat
    finally:
        await db.close()
