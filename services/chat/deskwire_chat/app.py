"""Puts chat together."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from functools import partial

from deskwire_chat import domain
from deskwire_chat.actions.agents import AgentActions
from deskwire_chat.actions.attachments import AttachmentActions, Limits
from deskwire_chat.actions.conversations import ConversationActions
from deskwire_chat.actions.customers import CustomerActions
from deskwire_chat.actions.keys import IntegrationKeyActions
from deskwire_chat.actions.offers import OfferActions
from deskwire_chat.actions.tenants import TenantActions
from deskwire_chat.actions.tools import Tools
from deskwire_chat.api import TABLE
from deskwire_chat.attachments.base import AttachmentStore
from deskwire_chat.attachments.bucket import BucketStore
from deskwire_chat.attachments.directory import DirectoryStore
from deskwire_chat.attachments.http import FilesSide
from deskwire_chat.attachments.remover import Remover
from deskwire_chat.attachments.signing import UrlSigner
from deskwire_chat.config import Settings
from deskwire_chat.handover import Handover
from deskwire_chat.keepers import AdmissionKeeper, BotKeeper
from deskwire_chat.live.admission import Admission
from deskwire_chat.live.connections import Connections
from deskwire_chat.live.heads import Heads
from deskwire_chat.live.link import READS, Links
from deskwire_chat.live.link_frames import LinkFrames
from deskwire_chat.live.offer_feed import OfferFeed
from deskwire_chat.live.presence import Presence
from deskwire_chat.live.queue_feed import QueueFeed
from deskwire_chat.live.receipts import Receipts
from deskwire_chat.live.tasks import Tasks
from deskwire_chat.log.commands import Held
from deskwire_chat.log.group import Collaborators
from deskwire_chat.log.indexer import SearchIndexer
from deskwire_chat.log.publisher import Publisher
from deskwire_chat.log.writer import LogWriter
from deskwire_chat.owners.forwarding import Peers
from deskwire_chat.owners.ownership import Ownership
from deskwire_chat.routing.reader import AgentReader
from deskwire_chat.routing.router import Router
from deskwire_chat.streams.forward import Forwarders, WatchForwarder
from deskwire_chat.streams.send import MessageStreams, Slots
from deskwire_chat.streams.watch import TappedLog, Watchers
from deskwire_common import db as dbs
from deskwire_common import housekeeping, rpc
from deskwire_common.clock import to_micros
from deskwire_common.config import split_address
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.kafka import ensure_topics
from deskwire_common.leadership import lead
from deskwire_common.lifecycle import Runtime
from deskwire_common.logging import get_logger
from deskwire_common.outbox import Outbox, OutboxRelay
from deskwire_common.ownership import Owner


async def build(settings: Settings, runtime: Runtime[Settings]) -> None:  # noqa: PLR0915 - the one place where things are made
    """Start everything; the server answers when this returns.

    Raises FailedPrecondition for another schema or a second process on a SQLite file, Unavailable without database
    or Kafka.
    """
    db = await runtime.database("deskwire_chat")
    if db.dialect == "sqlite":
        # The heads of one file can't have two writers.
        await runtime.stack.enter_async_context(lead(db, "chat-shard", wait=False))
    await ensure_topics(settings.kafka)
    # A MetaData of their own: this may be built twice in one process.
    outbox = Outbox(dbs.metadata(), runtime.clock)
    idempotency = IdempotencyStore(dbs.metadata(), runtime.clock)
    tools = Tools(db, outbox, idempotency, runtime.clock, runtime.ids)

    router = Router(
        now=lambda: to_micros(runtime.clock.now()), offer_seconds=settings.offer_seconds
    )
    admission = Admission()
    held = Held()
    connections = Connections(router, admission, held)
    publisher = Publisher(db, await runtime.producer("chat-messages"))
    slots = Slots(settings.max_streams, settings.max_tenant_streams)
    watchers = Watchers(db, admission.admit, slots)
    owner = Owner(
        db,
        runtime.clock,
        runtime.ids.uuid7(),
        lease_seconds=settings.lease_seconds,
        alone=db.dialect == "sqlite",
    )
    ownership = Ownership(owner)
    reader = AgentReader(db, router, ownership)

    def is_ours(item: domain.conversations.Conversation) -> bool:
        return ownership.term_of(item.partition) > 0

    presence = Presence(db, connections, is_ours=is_ours)
    writer = LogWriter(
        db,
        outbox,
        ownership,
        Collaborators(
            runtime.ids,
            router,
            connections.deliver,
            presence.introduce,
            settings.default_region,
        ),
        clock=runtime.clock,
        log=TappedLog(publisher, watchers),
        updated=watchers.changed,
        held=held,
    )
    receipts = Receipts(db, connections, writer.memory, runtime.clock)
    feeds = QueueFeed(
        db,
        connections,
        runtime.clock,
        is_ours=lambda tenant: ownership.term_of(domain.conversations.partition_of(tenant)) > 0,
    )
    offers = OfferFeed(db, connections, router, seconds=settings.offer_seconds, is_ours=is_ours)
    router.tell(offers)
    tasks, reads = Tasks(), asyncio.Semaphore(READS)
    links = Links(
        connections,
        LinkFrames(
            db, connections, writer, router, receipts, presence, runtime.validator, tasks, reads
        ),
        Heads(db, ownership, presence, feeds, offers, reads),
        ownership,
        tasks,
        runtime.verifier,
    )
    ownership.bind(Handover(writer, publisher, router, reader, links, watchers))
    peers = Peers(
        ownership,
        lambda address: rpc.make_channel(
            address, tls=runtime.tls, bare=True, server_name=settings.peer_name
        ),
    )
    runtime.stack.push_async_callback(peers.close)
    forwarders = Forwarders(writer, ownership, peers)
    streams = MessageStreams(
        writer, forwarders.forwarder, runtime.validator, admission.admit, slots
    )
    conversation_actions = ConversationActions(tools, writer, router)
    keeper = AdmissionKeeper(
        db,
        admission,
        [connections.expel, streams.expel, watchers.expel],
        conversation_actions,
        ownership,
    )
    await keeper.load()
    bots = BotKeeper(
        db, router, conversation_actions, ownership, away_seconds=settings.bot_away_seconds
    )

    files = await _open_files(settings, runtime)
    if files is not None:
        runtime.spawn("attachments", Remover(db, files, runtime.clock).run)
    limits = Limits.of(settings)
    get_logger().info("limits", **asdict(limits))

    relay = OutboxRelay(
        db, outbox, await runtime.producer("chat-outbox"), keep=settings.outbox_keep_seconds
    )
    runtime.spawn("outbox", relay.run)
    runtime.spawn("publisher", publisher.run)
    runtime.spawn("writer", writer.run)
    runtime.spawn("presence", presence.run)
    runtime.spawn("receipts", receipts.run)
    runtime.spawn("queue-feed", feeds.run)
    runtime.spawn("offers", offers.run)
    runtime.spawn("agent-reader", reader.run)
    runtime.spawn("agents", reader.run_agents)
    runtime.spawn("queue", reader.run_partitions)
    runtime.spawn("admission-keeper", keeper.run)
    runtime.spawn("bot-keeper", bots.run)
    runtime.spawn("outbox-gauges", partial(housekeeping.measure_outbox, db, outbox, runtime.clock))
    runtime.spawn("search", SearchIndexer(db, runtime.clock).run)
    runtime.spawn("forget-requests", partial(housekeeping.forget_requests, db, idempotency))
    await reader.load(writer.propose)

    # At the end: what waits is stored and answered, Kafka gets the rest, others get the partitions, the streams end.
    runtime.on_drain(links.drain)
    runtime.on_drain(writer.drain)
    runtime.on_drain(owner.leave)
    runtime.on_drain(streams.drain)
    runtime.on_drain(watchers.drain)
    runtime.on_drain(peers.drain)

    port = await runtime.serve_table(
        TABLE,
        conversation_actions,
        streams,
        WatchForwarder(watchers, peers),
        AttachmentActions(tools, files, limits),
        CustomerActions(tools, connections, settings.default_region),
        AgentActions(tools, router, keeper.look),
        OfferActions(tools, router, writer),
        TenantActions(tools, keeper.look),
        IntegrationKeyActions(tools, runtime.signer),
        links,
        forward=peers.unary,
        admit=admission.admit,
    )
    # From here on others send their calls and conversations here.
    await owner.start(settings.shard_name, settings.address(port))
    runtime.spawn("ownership", owner.run)


async def _open_files(settings: Settings, runtime: Runtime[Settings]) -> AttachmentStore | None:
    """Open the store of attachments; of a folder its HTTP side, too. None: there is none.

    Raises OSError for a folder that can't be written, or an address that is taken.
    """
    if (place := settings.attachments_bucket) is not None:
        bucket = BucketStore(
            place,
            access_key=settings.attachments_access_key,
            secret_key=settings.attachments_secret_key.get_secret_value(),
            public_url=settings.attachments_public_url,
        )
        runtime.stack.callback(bucket.close)
        await bucket.open()
        return bucket
    if (folder := settings.attachments_folder) is None:
        return None
    signer = UrlSigner(settings.attachments_public_url, runtime.keys, runtime.clock)
    store = DirectoryStore(folder, signer)
    runtime.stack.callback(store.close)
    await store.open()
    side = FilesSide(
        store,
        signer,
        max_transfers=settings.attachments_max_transfers,
        transfer_seconds=settings.attachments_transfer_seconds,
        cors_origins=settings.attachments_cors_origins.split(","),
    )
    host, port = split_address(settings.attachments_listen)
    port = await side.listen(host, port)
    runtime.stack.push_async_callback(side.close)
    runtime.extra_ports["attachments"] = port
    # Without another name they are reached where they listen.
    signer.base = signer.base or settings.attachments_base(port)
    return store
