"""Puts change capture together."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from deskwire_cdc import supervisor
from deskwire_cdc.actions import SourceActions
from deskwire_cdc.api import TABLE
from deskwire_cdc.clients import CustomerClient
from deskwire_cdc.config import Settings
from deskwire_cdc.follower import Parts
from deskwire_cdc.sources import ReaderOptions
from deskwire_common import db as dbs
from deskwire_common import housekeeping, shutout, topics
from deskwire_common.idempotency import IdempotencyStore
from deskwire_common.kafka import ensure_topics
from deskwire_common.lifecycle import Runtime
from deskwire_common.outbox import Outbox, OutboxRelay
from deskwire_common.ownership import Owner, join
from deskwire_common.quota import Quota
from deskwire_common.targets import Targets, parse_rules


async def build(settings: Settings, runtime: Runtime[Settings]) -> None:
    """Start everything; the server answers when this returns. Raises when a part isn't usable."""
    db = await runtime.database("deskwire_cdc")
    await ensure_topics(settings.kafka, [topics.SOURCES])
    # Tables of their own: a second service in the same process must not meet the first one's.
    outbox = Outbox(dbs.metadata(), runtime.clock)
    idempotency = IdempotencyStore(dbs.metadata(), runtime.clock)
    options = ReaderOptions(
        clock=runtime.clock,
        targets=Targets(parse_rules(settings.source_targets)),
        roots=settings.sqlite_roots,
        own=own_folders(settings),
    )
    owner = Owner(db, runtime.clock, runtime.ids.uuid7(), lease_seconds=settings.lease_seconds)
    actions = SourceActions(
        db=db,
        outbox=outbox,
        idempotency=idempotency,
        clock=runtime.clock,
        ids=runtime.ids,
        options=options,
        wake=owner.wake,
        max_sources=settings.max_sources,
        max_tables=settings.max_tables,
        under_way=Quota(settings.max_registrations),
    )
    customers = CustomerClient(runtime.channel(settings.chat_target), runtime.signer)
    parts = Parts(
        db=db,
        kafka=settings.kafka,
        customers=customers,
        clock=runtime.clock,
        ids=runtime.ids,
        options=options,
    )
    sources = supervisor.Supervisor(parts)
    owner.employ(supervisor.KIND, sources.work, ids=sources.ids, patience=0.0)
    relay = OutboxRelay(
        db, outbox, await runtime.producer(strict=True), keep=settings.outbox_keep_seconds
    )
    owner.employ(relay.KIND, relay.work)
    measure = partial(housekeeping.measure_outbox, db, outbox, runtime.clock)
    runtime.spawn("outbox-gauges", measure)
    runtime.spawn("forget-requests", partial(housekeeping.forget_requests, db, idempotency))

    await runtime.serve(TABLE, actions, admission=await shutout.follow(runtime, db))
    await join(runtime, owner)


def own_folders(settings: Settings) -> list[Path]:
    """Return the folders of the suite's own files, as far as this service knows: no source may be there."""
    folders = [settings.keys_file.absolute().parent]
    url = dbs.normalize_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        folders.append(dbs.file_of(url).absolute().parent)
    return folders
