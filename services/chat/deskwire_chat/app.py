"""Puts chat together."""

from __future__ import annotations

from functools import partial

import grpc

from deskwire.chat.v1 import (
    agent_service_pb2_grpc,
    conversation_service_pb2_grpc,
    customer_service_pb2_grpc,
)
from deskwire_chat.actions import (
    AGENTS,
    CONVERSATIONS,
    CUSTOMERS,
    AgentActions,
    ConversationActions,
    CustomerActions,
    Tools,
)
from deskwire_chat.api import AUTHORIZATION, AgentApi, ConversationApi, CustomerApi
from deskwire_chat.config import Settings
from deskwire_chat.routing import Router
from deskwire_chat.shard import links as shard_links
from deskwire_chat.shard.links import Links
from deskwire_chat.shard.publisher import Publisher
from deskwire_chat.shard.writer import ShardWriter
from deskwire_chat.worker import AgentReader
from deskwire_common import db as dbs
from deskwire_common import housekeeping
from deskwire_common.clock import to_micros
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.kafka import ensure_topics
from deskwire_common.lifecycle import Runtime
from deskwire_common.outbox import Outbox, OutboxRelay


async def build(settings: Settings, runtime: Runtime[Settings]) -> None:
    """Start everything; the server answers when this returns.

    Raises FailedPrecondition for another schema or a second process on a SQLite file, Unavailable without database
    or Kafka.
    """
    db = await runtime.database("deskwire_chat")
    if db.dialect == "sqlite":
        # The heads of one file can't have two writers.
        await runtime.stack.enter_async_context(db.leader("chat-shard", wait=False))
    await ensure_topics(settings.kafka)
    # A MetaData of their own: this may be built twice in one process.
    outbox = Outbox(dbs.metadata(), runtime.clock)
    idempotency = IdempotencyStore(dbs.metadata(), runtime.clock)
    tools = Tools(db, outbox, idempotency, runtime.clock, runtime.ids)

    reader = AgentReader(db)
    router = Router(now=lambda: to_micros(runtime.clock.now()), refresh=reader.ask)
    links = Links(db, router, runtime.verifier, runtime.validator)
    publisher = Publisher(db, await runtime.producer("chat-messages"))
    writer = ShardWriter(
        db,
        outbox,
        router,
        ids=runtime.ids,
        clock=runtime.clock,
        owner=settings.shard_name,
        deliver=links.deliver,
        log=publisher,
    )
    publisher.own(await writer.claim())
    links.bind(writer)

    relay = OutboxRelay(db, outbox, await runtime.producer("chat-outbox"))
    runtime.spawn("outbox", relay.run)
    runtime.spawn("publisher", publisher.run)
    runtime.spawn("writer", writer.run)
    runtime.spawn("agent-reader", partial(reader.run, router))
    runtime.spawn("outbox-gauges", partial(housekeeping.measure_outbox, db, outbox, runtime.clock))
    runtime.spawn("forget-requests", partial(housekeeping.forget_requests, db, idempotency))
    await reader.load(router, writer.propose)

    # At the end: no new frames, what waits is stored and answered, the streams end, Kafka gets the rest.
    runtime.on_drain(writer.release)
    runtime.on_drain(publisher.drain)
    runtime.on_drain(links.drain)
    runtime.on_drain(writer.drain)

    def register(server: grpc.aio.Server) -> None:
        conversation_service_pb2_grpc.add_ConversationServiceServicer_to_server(
            ConversationApi(ConversationActions(tools, writer)), server
        )
        customer_service_pb2_grpc.add_CustomerServiceServicer_to_server(
            CustomerApi(CustomerActions(tools, links, settings.default_region)), server
        )
        agent_service_pb2_grpc.add_AgentServiceServicer_to_server(
            AgentApi(AgentActions(tools, router)), server
        )

    await runtime.serve(
        [register, links.register],
        [CONVERSATIONS, CUSTOMERS, AGENTS, shard_links.SERVICE],
        AUTHORIZATION,
        inline_auth=frozenset({shard_links.METHOD}),
    )
