"""The link pool: a link to each shard of chat."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import grpc

from deskwire.shard.v1 import shard_service_pb2 as pb
from deskwire_common.auth import TokenSigner
from deskwire_common.logging import get_logger
from deskwire_common.metrics import METRICS
from deskwire_gateway.items import attach, up_item
from deskwire_gateway.link import Link
from deskwire_gateway.owner_map import OwnerMap
from deskwire_gateway.registry import Registry
from deskwire_gateway.sends import Sends
from deskwire_gateway.syncs import Syncs

_LOOK_SECONDS: Final = 1.0
_AGAIN: Final = 0.05
"""Seconds after a link's end until the next try."""


class LinkPool:
    """Keeps a link to each shard."""

    def __init__(
        self,
        seed: str,
        connect: Callable[[str], grpc.aio.Channel],
        signer: TokenSigner,
        worker_id: str,
        registry: Registry,
        owners: OwnerMap,
        sends: Sends,
        syncs: Syncs,
    ) -> None:
        """`seed` is the address of any shard, which knows the others."""
        self._seed = seed
        self._connect = connect
        self._signer = signer
        self._worker_id = worker_id
        self._registry = registry
        self._owners = owners
        self._sends = sends
        self._syncs = syncs
        self._generation = 0
        self._calling: dict[str, tuple[Link, asyncio.Task[None]]] = {}

    # ---------------------------------------------------------------------------------------- life

    async def run(self) -> None:
        """Keep a link to each shard until cancelled."""
        try:
            while True:
                self._call_missing()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._owners.changed.wait()
                self._owners.changed.clear()
                self._sends.give_up_late()
        finally:
            tasks = [task for _, task in self._calling.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _call_missing(self) -> None:
        """Call the shards that have no link, and the seed while there is no link at all."""
        targets = self._owners.addresses - set(self._owners.links)
        if not self._owners.links:
            targets.add(self._seed)
        for target, (link, task) in self._calling.items():
            if target not in targets and not link.is_open:
                task.cancel()
        for target in targets:
            if target not in self._calling:
                self._call(target, 0.0)

    def _call(self, target: str, pause: float) -> None:
        link = Link(target, self._connect, self._signer, self._registry, self, self._sends.answered)
        task = asyncio.create_task(link.run(pause), name=f"link-{target}")
        self._calling[target] = (link, task)
        task.add_done_callback(lambda done: self._ended(link, done))

    def _ended(self, link: Link, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            get_logger().error("link_failed", target=link.target, exc_info=error)
        del self._calling[link.target]
        self._owners.forget_reports(link)
        if link.address and self._owners.links.get(link.address) is link:
            del self._owners.links[link.address]
            METRICS.gateway_links.set(len(self._owners.links))
            on_item = link.ended_with is grpc.StatusCode.RESOURCE_EXHAUSTED
            self._sends.link_broke(link.address, on_item=on_item)
            self._syncs.link_lost(link, on_item=on_item)
        is_needed = link.target in self._owners.addresses or not self._owners.links
        if not task.cancelled() and is_needed:
            self._call(link.target, _AGAIN)
        self._owners.changed.set()

    # ------------------------------------------------------------------------------- called by links

    def greeting(self) -> bytes:
        """Return the first item of a stream."""
        self._generation += 1
        hello = pb.LinkHello(worker_id=self._worker_id, generation=self._generation)
        return up_item(hello=hello)

    def opened(self, link: Link, owners: pb.Owners) -> list[bytes] | None:
        """Return the snapshot for a shard that has answered; None when it has a link already."""
        if owners.address in self._owners.links:
            return None
        self.owners_changed(link, owners)
        syncs = self._syncs.waiting_for(link)
        snapshot = [
            up_item(snapshot_begin=pb.SnapshotBegin()),
            *(attach(session) for session in self._registry.by_number.values()),
            *self._sends.of_shard(owners.address),
            *syncs,
            up_item(snapshot_end=pb.SnapshotEnd()),
        ]
        self._owners.links[owners.address] = link
        METRICS.gateway_links.set(len(self._owners.links))
        get_logger().info("link_open", target=link.target, shard=owners.address)
        self._owners.changed.set()
        return snapshot

    def owners_changed(self, link: Link, owners: pb.Owners) -> None:
        """Take in a shard's report of who owns what now."""
        moved = self._owners.update(link, owners)
        if moved:
            self._sends.moved(moved)
