"""Builds the ticket service."""

from __future__ import annotations

from functools import partial

from deskwire_common import db as dbs
from deskwire_common import housekeeping, shutout, topics
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.kafka import ensure_topics
from deskwire_common.lifecycle import Runtime
from deskwire_common.outbox import Outbox, OutboxRelay
from deskwire_common.ownership import Owner, join
from deskwire_tickets.actions import TicketActions
from deskwire_tickets.api import TABLE
from deskwire_tickets.clients import ChatClient
from deskwire_tickets.config import Settings


async def build(settings: Settings, runtime: Runtime[Settings]) -> None:
    """Start everything; the server answers when this returns.

    Raises FailedPrecondition for another schema, Unavailable without database or Kafka.
    """
    db = await runtime.database("deskwire_tickets")
    await ensure_topics(settings.kafka, [topics.TICKETS])
    # The tables get a MetaData of their own, as one process may build the service twice.
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
    owner = Owner(db, runtime.clock, runtime.ids.uuid7(), lease_seconds=settings.lease_seconds)
    relay = OutboxRelay(
        db, outbox, await runtime.producer(strict=True), keep=settings.outbox_keep_seconds
    )
    owner.employ(relay.KIND, relay.work)
    runtime.spawn("outbox-gauges", partial(housekeeping.measure_outbox, db, outbox, runtime.clock))
    runtime.spawn("forget-requests", partial(housekeeping.forget_requests, db, idempotency))
    await runtime.serve(TABLE, actions, admission=await shutout.follow(runtime, db))
    await join(runtime, owner)
