"""Puts the event hub together."""

from __future__ import annotations

from functools import partial

from deskwire_common import db as dbs
from deskwire_common import housekeeping, shutout
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.kafka import ensure_topics
from deskwire_common.lifecycle import Runtime
from deskwire_common.outbox import Outbox, OutboxRelay
from deskwire_common.ownership import Owner, join
from deskwire_common.quota import Quota
from deskwire_common.targets import Targets, parse_rules
from deskwire_events import worker
from deskwire_events.actions import AdapterActions, EventActions
from deskwire_events.adapters import GrpcAdapter
from deskwire_events.api import TABLE
from deskwire_events.config import Settings
from deskwire_events.delivery import Ledger
from deskwire_events.subscribe import Subscriptions
from deskwire_events.worker import Deliveries


async def build(settings: Settings, runtime: Runtime[Settings]) -> None:
    """Start everything; the server answers when this returns.

    Raises FailedPrecondition for another schema, Unavailable without database or Kafka.
    """
    clock, ids = runtime.clock, runtime.ids
    db = await runtime.database("deskwire_events")
    await ensure_topics(settings.kafka)
    # A MetaData of their own: this may be built twice in one process.
    outbox = Outbox(dbs.metadata(), clock)
    idempotency = IdempotencyStore(dbs.metadata(), clock)
    owner = Owner(db, clock, ids.uuid7(), lease_seconds=settings.lease_seconds)
    ledger = Ledger(db, outbox, clock, ids, settings.dead_letter_limit)
    open_adapter = partial(
        GrpcAdapter,
        targets=Targets(parse_rules(settings.adapter_targets)),
        tls=runtime.tls,
        clock=clock,
    )
    deliveries = Deliveries(
        settings.kafka, ledger, open_adapter, clock, settings.kafka_group_protocol
    )
    events = EventActions(db, outbox, idempotency, clock, ids)
    adapters = AdapterActions(
        db=db,
        outbox=outbox,
        idempotency=idempotency,
        clock=clock,
        ids=ids,
        kafka=settings.kafka,
        open_adapter=open_adapter,
        max_adapters=settings.max_adapters,
        under_way=Quota(settings.max_registrations),
        changed=owner.wake.set,
    )
    subscriptions = Subscriptions(settings.kafka, clock, Quota(settings.max_subscriptions))
    relay = OutboxRelay(db, outbox, await runtime.producer(), keep=settings.outbox_keep_seconds)
    owner.employ(relay.KIND, relay.work)
    runtime.spawn("outbox-gauges", partial(housekeeping.measure_outbox, db, outbox, clock))
    owner.employ(worker.KIND, deliveries.work, ids=worker.slots_of_adapters, patience=0.0)
    runtime.spawn("forget-requests", partial(housekeeping.forget_requests, db, idempotency))
    runtime.spawn("trim-deliveries", partial(worker.trim_deliveries, db))

    async def end_streams() -> None:
        subscriptions.stopping.set()

    runtime.on_drain(end_streams)

    await runtime.serve(
        TABLE, events, subscriptions, adapters, admission=await shutout.follow(runtime, db)
    )
    await join(runtime, owner)
