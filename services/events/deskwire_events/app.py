"""Puts the event hub together."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial

import grpc

from deskwire_common import db as dbs
from deskwire_common import housekeeping, shutout
from deskwire_common.config import reachable
from deskwire_common.db import Database
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.kafka import ensure_topics
from deskwire_common.lifecycle import Runtime
from deskwire_common.outbox import Outbox, OutboxRelay
from deskwire_common.ownership import Holdings, Owner, Slot, SlotRows, join, slots_table
from deskwire_common.quota import Quota
from deskwire_common.rpc import make_channel
from deskwire_common.sealing import load_sealer
from deskwire_common.targets import Targets, parse_rules
from deskwire_events import conditions, domain, store
from deskwire_events import housekeeping as chores
from deskwire_events.actions import (
    AdapterActions,
    DeadLetterActions,
    EventActions,
    SubscriptionActions,
    WebhookActions,
)
from deskwire_events.api import TABLE
from deskwire_events.config import Settings
from deskwire_events.domain import Cursors, Filter, Limits, SinkKind, Subscription
from deskwire_events.hosts import AdapterHost, HostLimits
from deskwire_events.running import Begin, Keeper, Ledger, Pusher, Streamer, Subscriber
from deskwire_events.secret_refs import SecretRefs, parse_secret_rules
from deskwire_events.sinks import (
    AdapterSink,
    OpenSink,
    WebhookSetup,
    WebhookSink,
    tls_context,
    way_to,
)
from deskwire_events.spine import Spine
from deskwire_events.streams import Named, Subscriptions


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
    spine = Spine(settings.kafka, clock)
    holdings = _holdings()
    ledger = Ledger(db, outbox, clock, ids, holdings, settings.dead_letter_limit)
    host = _adapter_host(settings)
    runtime.stack.push_async_callback(host.close)
    sealer = load_sealer(settings.sealing_file)
    open_adapter = partial(
        AdapterSink,
        open_way=partial(
            way_to,
            targets=Targets(parse_rules(settings.adapter_targets)),
            tls=runtime.tls,
            host=host,
        ),
        secrets=SecretRefs(parse_secret_rules(settings.adapter_secrets)),
        sealer=sealer,
        clock=clock,
    )
    open_webhook = partial(
        WebhookSink,
        setup=WebhookSetup(
            targets=Targets(parse_rules(settings.webhook_targets)),
            tls=tls_context(settings.webhook_ca_file),
            allow_http=settings.webhook_allow_http,
            sealer=sealer,
            parallel=settings.webhook_parallel,
            seconds=settings.webhook_seconds,
        ),
        clock=clock,
    )
    sinks: dict[SinkKind, OpenSink] = {
        SinkKind.ADAPTER: open_adapter,
        SinkKind.WEBHOOK: open_webhook,
    }
    limits = Limits(refusals=settings.delivery_attempts, age=settings.delivery_age_seconds)

    def make(begin: Begin) -> Subscriber | None:
        if begin.subscription.kind is SinkKind.STREAM:
            return Streamer(
                begin, _filter(begin.subscription), db=db, spine=spine, clock=clock, limits=limits
            )
        open_sink = sinks.get(begin.subscription.kind)
        if open_sink is None:
            return None
        return Pusher(
            begin,
            _filter(begin.subscription),
            open_sink(begin.subscription),
            db=db,
            spine=spine,
            clock=clock,
            limits=limits,
            dead_letter_limit=settings.dead_letter_limit,
        )

    keeper = Keeper(db, spine, ledger, holdings, make, clock)
    events = EventActions(db, outbox, idempotency, clock, ids)
    adapters = AdapterActions(
        db=db,
        outbox=outbox,
        idempotency=idempotency,
        clock=clock,
        ids=ids,
        spine=spine,
        sealer=sealer,
        open_adapter=open_adapter,
        max_adapters=settings.max_adapters,
        under_way=Quota(settings.max_registrations),
        changed=keeper.wake.set,
    )
    webhooks = WebhookActions(db, clock, ids, open_webhook, Quota(settings.max_registrations))
    cursors = Cursors(await _cursor_key(db), await spine.broker.cluster())
    named = Named(db, keeper, clock, _owner_of(owner, holdings), _channels(runtime))
    subscriptions = Subscriptions(spine, cursors, clock, Quota(settings.max_subscriptions), named)
    registry = SubscriptionActions(
        db=db,
        outbox=outbox,
        idempotency=idempotency,
        clock=clock,
        ids=ids,
        spine=spine,
        cursors=cursors,
        sealer=sealer,
        allow_http=settings.webhook_allow_http,
        most=settings.max_named_subscriptions,
        changed=keeper.wake.set,
    )
    letters = DeadLetterActions(db, outbox, idempotency, clock, ids, keeper.wake.set)
    relay = OutboxRelay(
        db, outbox, await runtime.producer(strict=True), keep=settings.outbox_keep_seconds
    )
    owner.employ(relay.KIND, relay.work)
    owner.add(holdings, keeper, [str(slot) for slot in range(domain.SLOTS)])
    runtime.spawn("outbox-gauges", partial(housekeeping.measure_outbox, db, outbox, clock))
    runtime.spawn("forget-requests", partial(housekeeping.forget_requests, db, idempotency))
    runtime.spawn("trim-deliveries", partial(chores.trim_deliveries, db))
    runtime.spawn("forget-deleted", partial(chores.forget_deleted, db))
    runtime.spawn("forget-ids", partial(chores.forget_ids, db, clock))
    runtime.spawn("spine", spine.run)
    runtime.spawn("subscriptions", keeper.run)
    runtime.spawn("ledger", keeper.save)

    async def end_streams() -> None:
        subscriptions.stop()

    runtime.on_drain(end_streams)

    await runtime.serve(
        TABLE,
        events,
        subscriptions,
        registry,
        letters,
        webhooks,
        adapters,
        admission=await shutout.follow(runtime, db),
    )
    await join(runtime, owner, reachable(settings.advertise, settings.grpc_listen, runtime.port))


def _adapter_host(settings: Settings) -> AdapterHost:
    names = frozenset(name.strip() for name in settings.python_adapters.split(","))
    more = {"DESKWIRE_ADAPTER_TARGETS": settings.adapter_targets}
    if settings.adapter_root is not None:
        more["DESKWIRE_ADAPTER_ROOT"] = str(settings.adapter_root)
    return AdapterHost(names, HostLimits(memory=settings.adapter_memory_mib << 20), more)


def _holdings() -> Holdings[Slot]:
    table = slots_table(dbs.metadata())
    rows = SlotRows(
        table, lambda row: Slot(row.id, row.term, row.owner), mine={"kind": domain.KIND}
    )
    return Holdings(domain.KIND, rows)


def _owner_of(owner: Owner, holdings: Holdings[Slot]) -> Callable[[int], str | None]:
    """The address of a slot's owner: "" for this process, None when nobody is known."""

    def owner_of(slot: int) -> str | None:
        if holdings.term_of(str(slot)):
            return ""
        seen = holdings.seen.get(str(slot))
        member = None if seen is None else owner.live.get(seen.owner)
        return (
            None if member is None or seen is None or seen.owner == owner.name else member.address
        )

    return owner_of


def _channels(runtime: Runtime[Settings]) -> Callable[[str], grpc.aio.Channel]:
    """Channels to other hubs, one for each; their callers' tokens are passed on."""
    channels: dict[str, grpc.aio.Channel] = {}

    def channel(address: str) -> grpc.aio.Channel:
        found = channels.get(address)
        if found is None:
            found = channels[address] = make_channel(
                address, tls=runtime.tls, bare=True, server_name=runtime.settings.peer_name
            )
            runtime.stack.push_async_callback(found.close)
        return found

    return channel


def _filter(subscription: Subscription) -> Filter:
    """What an adapter or another system gets: never its own, and nothing about itself."""
    wanted = subscription.wanted
    return Filter(
        subscription.tenant,
        wanted,
        kinds=subscription.event_types,
        not_source=subscription.system_id,
        not_about=(domain.DEAD_LETTERED, subscription.subject),
        condition=conditions.condition(wanted.cel) if wanted.cel else None,
    )


async def _cursor_key(db: Database) -> bytes:
    fresh = secrets.token_bytes(32)
    return await db.run(lambda uow: store.keys.shared(uow, "cursors", fresh))
