"""Puts the ticket service together."""

from __future__ import annotations

from functools import partial

import grpc

from deskwire.tickets.v1 import ticket_service_pb2_grpc
from deskwire_common import db as dbs
from deskwire_common import housekeeping, topics
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.kafka import ensure_topics
from deskwire_common.lifecycle import Runtime
from deskwire_common.outbox import Outbox, OutboxRelay
from deskwire_tickets.actions import SERVICE, TicketActions
from deskwire_tickets.api import AUTHORIZATION, TicketApi
from deskwire_tickets.clients import ChatClient
from deskwire_tickets.config import Settings


async def build(settings: Settings, runtime: Runtime[Settings]) -> None:
    """Start everything; the server answers when this returns.

    Raises FailedPrecondition for another schema, Unavailable without database or Kafka.
    """
    db = await runtime.database("deskwire_tickets")
    await ensure_topics(settings.kafka, [topics.TICKETS])
    # A MetaData of their own: this may be built twice in one process.
    outbox = Outbox(dbs.metadata(), runtime.clock)
    idempotency = IdempotencyStore(dbs.metadata(), runtime.clock)
    actions = TicketActions(
        db=db,
        outbox=outbox,
        idempotency=idempotency,
        chat=ChatClient(runtime.channel(settings.chat_target), runtime.signer),
        clock=runtime.clock,
        ids=runtime.ids,
    )
    relay = OutboxRelay(db, outbox, await runtime.producer(), keep=settings.outbox_keep_seconds)
    runtime.spawn("outbox", relay.run)
    runtime.spawn("outbox-gauges", partial(housekeeping.measure_outbox, db, outbox, runtime.clock))
    runtime.spawn("forget-requests", partial(housekeeping.forget_requests, db, idempotency))

    def register(server: grpc.aio.Server) -> None:
        ticket_service_pb2_grpc.add_TicketServiceServicer_to_server(TicketApi(actions), server)

    await runtime.serve([register], [SERVICE], AUTHORIZATION)
