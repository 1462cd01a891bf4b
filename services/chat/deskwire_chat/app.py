"""Builds chat in five steps: storage, routing, the log, live streams, the server."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from functools import partial

from deskwire_chat.actions.agents import AgentActions
from deskwire_chat.actions.attachments import AttachmentActions, Limits
from deskwire_chat.actions.conversations import ConversationActions
from deskwire_chat.actions.customers import CustomerActions
from deskwire_chat.actions.history import HistoryActions
from deskwire_chat.actions.keys import IntegrationKeyActions
from deskwire_chat.actions.offers import OfferActions
from deskwire_chat.actions.tenants import TenantActions
from deskwire_chat.actions.tools import Tools
from deskwire_chat.api import TABLE
from deskwire_chat.attachments.base import AttachmentStore
from deskwire_chat.attachments.bucket import BucketStore
from deskwire_chat.attachments.directory import DirectoryStore, Folder
from deskwire_chat.attachments.http import FilesSide
from deskwire_chat.attachments.remover import Remover
from deskwire_chat.attachments.signing import Signatures, UrlSigner
from deskwire_chat.config import Settings
from deskwire_chat.domain.conversations import Conversation, partition_of
from deskwire_chat.domain.openings import OpeningLimits
from deskwire_chat.handover import Handover
from deskwire_chat.keepers import AbsenceKeeper, AdmissionKeeper
from deskwire_chat.live.admission import Admission
from deskwire_chat.live.audience import Audience
from deskwire_chat.live.connections import Connections
from deskwire_chat.live.customer_feed import CustomerFeed
from deskwire_chat.live.doubts import Doubts
from deskwire_chat.live.heads import Heads
from deskwire_chat.live.link import READS, Links
from deskwire_chat.live.link_frames import LinkFrames
from deskwire_chat.live.lookups import Lookups
from deskwire_chat.live.offer_feed import OfferFeed, OfferPushes
from deskwire_chat.live.presence import Presence
from deskwire_chat.live.queue_feed import QueueFeed
from deskwire_chat.live.receipts import Receipts
from deskwire_chat.live.unread_feed import UnreadFeed
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
from deskwire_chat.streams.send import MessageStreams
from deskwire_chat.streams.watch import TappedLog, Watchers
from deskwire_common import db as dbs
from deskwire_common import housekeeping, rpc
from deskwire_common.auth import Guesses
from deskwire_common.clock import to_micros
from deskwire_common.config import split_address
from deskwire_common.db import Database
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.kafka import ensure_topics
from deskwire_common.lifecycle import Runtime
from deskwire_common.locks import locked
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_common.outbox import Outbox, OutboxRelay
from deskwire_common.ownership import Owner
from deskwire_common.quota import Quota


@dataclass(frozen=True, slots=True)
class _Storage:
    """The database, and what use cases need to write to it."""

    db: Database
    outbox: Outbox
    idempotency: IdempotencyStore
    tools: Tools
    owner: Owner


@dataclass(frozen=True, slots=True)
class _Routing:
    """Routing, the users whom its offers reach, and the partitions of this process, within which it may give work."""

    audience: Audience
    offers: OfferPushes
    router: Router
    owner: Owner
    ownership: Ownership
    reader: AgentReader

    def is_ours(self, item: Conversation) -> bool:
        """Whether this process owns a conversation."""
        return self.ownership.term_of(item.partition) > 0


@dataclass(frozen=True, slots=True)
class _Log:
    """The writer of messages, and what follows its commits."""

    admission: Admission
    connections: Connections
    presence: Presence
    customer_feed: CustomerFeed
    unread_feed: UnreadFeed
    slots: Quota
    watchers: Watchers
    publisher: Publisher
    writer: LogWriter


@dataclass(frozen=True, slots=True)
class _Live:
    """The links and streams that take messages, and the feeds that they carry."""

    links: Links
    streams: MessageStreams
    peers: Peers


async def build(settings: Settings, runtime: Runtime[Settings]) -> None:
    """Start everything; the server answers when this returns.

    Raises FailedPrecondition for another schema or a second process on a SQLite file, Unavailable without database
    or Kafka.
    """
    storage = await _storage(settings, runtime)
    routing = _routing(settings, runtime, storage)
    log = await _log(settings, runtime, storage, routing)
    live = _live(settings, runtime, storage, routing, log)
    await _serve(settings, runtime, storage, routing, log, live)


async def _storage(settings: Settings, runtime: Runtime[Settings]) -> _Storage:
    """Open the database, and make sure of Kafka's topics."""
    db = await runtime.database("deskwire_chat")
    if db.dialect == "sqlite":
        # The heads of one file can't have two writers.
        await runtime.stack.enter_async_context(locked(db, "chat-shard", wait=False))
    await ensure_topics(settings.kafka)
    # The tables get a MetaData of their own, as one process may build chat twice.
    outbox = Outbox(dbs.metadata(), runtime.clock)
    idempotency = IdempotencyStore(dbs.metadata(), runtime.clock)
    producer = await runtime.producer("chat-outbox", strict=True)
    relay = OutboxRelay(db, outbox, producer, keep=settings.outbox_keep_seconds)
    owner = Owner(
        db,
        runtime.clock,
        runtime.ids.uuid7(),
        lease_seconds=settings.lease_seconds,
        alone=db.dialect == "sqlite",
    )
    owner.employ(relay.KIND, relay.work)
    runtime.spawn("outbox-gauges", partial(housekeeping.measure_outbox, db, outbox, runtime.clock))
    runtime.spawn("forget-requests", partial(housekeeping.forget_requests, db, idempotency))
    tools = Tools(db, outbox, idempotency, runtime.clock, runtime.ids)
    return _Storage(db, outbox, idempotency, tools, owner)


def _routing(settings: Settings, runtime: Runtime[Settings], storage: _Storage) -> _Routing:
    """Make routing and ownership; both start when everything else is ready."""
    audience = Audience()
    offers = OfferPushes(audience)
    router = Router(
        offers,
        now=lambda: to_micros(runtime.clock.now()),
        offer_seconds=settings.offer_seconds,
    )
    ownership = Ownership(storage.owner)
    reader = AgentReader(storage.db, router, ownership)
    return _Routing(audience, offers, router, storage.owner, ownership, reader)


async def _log(
    settings: Settings, runtime: Runtime[Settings], storage: _Storage, routing: _Routing
) -> _Log:
    """Make the writer, what it calls after a commit, and what follows the committed log."""
    db, router, audience = storage.db, routing.router, routing.audience
    admission, held = Admission(), Held()
    connections = Connections(audience, router, admission, held)
    presence = Presence(db, audience, is_ours=routing.is_ours)
    customer_feed, unread_feed = CustomerFeed(db, audience), UnreadFeed(db, audience)
    doubts = Doubts(db, audience, router, is_ours=routing.is_ours)
    slots = Quota(settings.max_tenant_streams, settings.max_streams, show=METRICS.chat_streams.set)
    watchers = Watchers(db, admission.admit, slots)
    publisher = Publisher(db, await runtime.producer("chat-messages"))
    writer = LogWriter(
        db,
        storage.outbox,
        routing.ownership,
        Collaborators(
            runtime.ids,
            router,
            audience.deliver,
            presence.introduce,
            customer_feed.changed,
            unread_feed.redacted,
            doubts.note,
            OpeningLimits(settings.visitor_max_open, settings.visitor_openings_per_minute),
            settings.default_region,
        ),
        clock=runtime.clock,
        log=TappedLog(publisher, watchers),
        updated=watchers.changed,
        held=held,
    )
    runtime.spawn("publisher", publisher.run)
    runtime.spawn("writer", writer.run)
    runtime.spawn("presence", presence.run)
    runtime.spawn("customer-feed", customer_feed.run)
    runtime.spawn("unread-feed", unread_feed.run)
    runtime.spawn("doubts", doubts.run)
    storage.owner.employ(SearchIndexer.KIND, SearchIndexer(db, runtime.clock).work)
    return _Log(
        admission,
        connections,
        presence,
        customer_feed,
        unread_feed,
        slots,
        watchers,
        publisher,
        writer,
    )


def _live(
    settings: Settings,
    runtime: Runtime[Settings],
    storage: _Storage,
    routing: _Routing,
    log: _Log,
) -> _Live:
    """Make what serves the streams of gateways and integrators, and the forwarding to other owners."""
    db, router, ownership = storage.db, routing.router, routing.ownership
    audience, presence, writer = routing.audience, log.presence, log.writer
    reads = asyncio.Semaphore(READS)
    lookups = Lookups(db, writer.memory, reads)
    receipts = Receipts(db, audience, log.unread_feed, writer.memory, lookups, runtime.clock)
    queue_feed = QueueFeed(
        db,
        audience,
        runtime.clock,
        is_ours=lambda tenant: ownership.term_of(partition_of(tenant)) > 0,
    )
    offer_feed = OfferFeed(
        db, routing.offers, router, seconds=settings.offer_seconds, is_ours=routing.is_ours
    )
    frames = LinkFrames(
        db,
        audience,
        log.connections,
        writer,
        router,
        receipts,
        presence,
        lookups,
        runtime.validator,
        reads,
    )
    heads = Heads(db, ownership, presence, queue_feed, routing.offers, reads)
    links = Links(log.connections, frames, heads, ownership, runtime.verifier)
    peers = Peers(
        ownership,
        lambda address: rpc.make_channel(
            address, tls=runtime.tls, bare=True, server_name=settings.peer_name
        ),
    )
    runtime.stack.push_async_callback(peers.close)
    forwarders = Forwarders(writer, ownership, peers)
    streams = MessageStreams(
        writer, forwarders.forwarder, runtime.validator, log.admission.admit, log.slots
    )
    runtime.spawn("receipts", receipts.run)
    runtime.spawn("queue-feed", queue_feed.run)
    runtime.spawn("offers", offer_feed.run)
    return _Live(links, streams, peers)


async def _serve(
    settings: Settings,
    runtime: Runtime[Settings],
    storage: _Storage,
    routing: _Routing,
    log: _Log,
    live: _Live,
) -> None:
    """Make the use cases and serve them; then take partitions, and start routing."""
    db, tools, router, ownership = storage.db, storage.tools, routing.router, routing.ownership
    customers = CustomerActions(tools, log.customer_feed.changed, settings.default_region)
    conversations = ConversationActions(tools, log.writer, router)
    keeper = AdmissionKeeper(
        db,
        log.admission,
        [log.connections.expel, live.streams.expel, log.watchers.expel],
        conversations,
        ownership,
    )
    await keeper.load()
    absence = AbsenceKeeper(
        db,
        router,
        conversations,
        ownership,
        bot_seconds=settings.bot_away_seconds,
        agent_seconds=settings.agent_away_seconds,
    )
    files = await _open_files(settings, runtime)
    if files is not None:
        remover = Remover(db, files, runtime.clock)
        storage.owner.employ(remover.KIND, remover.work)
    limits = Limits.of(settings)
    get_logger().info("limits", **asdict(limits))
    runtime.spawn("agent-reader", routing.reader.run)
    runtime.spawn("agents", routing.reader.run_agents)
    runtime.spawn("queue", routing.reader.run_partitions)
    runtime.spawn("admission-keeper", keeper.run)
    runtime.spawn("absence-keeper", absence.run)
    await routing.reader.load(log.writer.propose)
    _drain_in_order(runtime, routing, log, live)
    port = await runtime.serve(
        TABLE,
        conversations,
        live.streams,
        WatchForwarder(log.watchers, live.peers),
        AttachmentActions(tools, files, limits),
        customers,
        HistoryActions(tools, log.writer, customers),
        AgentActions(tools, router, keeper.look),
        OfferActions(tools, router, log.writer),
        TenantActions(tools, keeper.look),
        IntegrationKeyActions(tools, runtime.signer, Guesses(runtime.clock)),
        live.links,
        forward=live.peers.unary,
        admission=log.admission,
    )
    ownership.take_share(
        Handover(log.writer, log.publisher, router, routing.reader, live.links, log.watchers)
    )
    routing.owner.on_change(live.links.owners_changed)
    # From here on other processes send calls and conversations here.
    await routing.owner.start(settings.shard_name, settings.address(port))
    runtime.spawn("ownership", routing.owner.run)


def _drain_in_order(runtime: Runtime[Settings], routing: _Routing, log: _Log, live: _Live) -> None:
    """Have the end go in this order: store and answer what waits, publish it, give partitions away, end streams."""
    runtime.on_drain(live.links.drain)
    runtime.on_drain(log.writer.drain)
    runtime.on_drain(routing.owner.leave)
    runtime.on_drain(live.streams.drain)
    runtime.on_drain(log.watchers.drain)
    runtime.on_drain(live.peers.drain)


async def _open_files(settings: Settings, runtime: Runtime[Settings]) -> AttachmentStore | None:
    """Open the store of attachments, and for a folder its HTTP side too. None: attachments are off.

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
    files = Folder(folder)
    runtime.stack.callback(files.close)
    await files.open()
    signatures = Signatures(runtime.keys, runtime.clock)
    side = FilesSide(
        files,
        signatures,
        max_transfers=settings.attachments_max_transfers,
        transfer_seconds=settings.attachments_transfer_seconds,
        cors_origins=settings.attachments_cors_origins.split(","),
    )
    host, port = split_address(settings.attachments_listen)
    port = await side.listen(host, port)
    runtime.stack.push_async_callback(side.close)
    runtime.extra_ports["attachments"] = port
    # Without a public URL, clients reach the files where they are served.
    base = settings.attachments_public_url or settings.attachments_base(port)
    return DirectoryStore(files, UrlSigner(base, signatures))
