"""The streams of the gateway's workers: connections that open and close on them, and the frames they carry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import Any, Final

import grpc

from deskwire.shard.v1 import shard_service_pb2 as pb
from deskwire_chat.domain.actors import Actor, ActorRole
from deskwire_chat.domain.conversations import PARTITIONS
from deskwire_chat.live import link_frames
from deskwire_chat.live.connections import Connections
from deskwire_chat.live.heads import Heads
from deskwire_chat.live.link_frames import LinkFrames
from deskwire_chat.live.stream import Connection, Stream
from deskwire_chat.owners.ownership import Ownership
from deskwire_common import rpc
from deskwire_common.auth import ANY_TENANT, Profile, Role, TokenVerifier
from deskwire_common.errors import PermissionDenied, stopping
from deskwire_common.logging import get_logger
from deskwire_common.pacing import link_pace

SERVICE: Final = "deskwire.shard.v1.ShardService"
METHOD: Final = f"/{SERVICE}/Link"
ROLES: Final = frozenset({Role.SERVICE})

READS: Final = 8
"""How many reads for links run at once."""
_HEADS_CHUNK: Final = 500
_DOWN_SECONDS: Final = 0.02
"""Longest pause between batches of a stream. Commits already pause (log.lanes): what they bring needn't wait twice."""


class Links:
    """All streams of gateways' workers to this process."""

    def __init__(
        self,
        connections: Connections,
        frames: LinkFrames,
        heads: Heads,
        ownership: Ownership,
        verifier: TokenVerifier,
    ) -> None:
        self._connections = connections
        self._frames = frames
        self._heads = heads
        self._ownership = ownership
        self._verifier = verifier
        self._workers: dict[str, Stream] = {}
        self._open: set[Stream] = set()
        self._stopping = False

    # --------------------------------------------------------------------------------- partitions

    def gained(self, numbers: Collection[int]) -> None:
        """Send heads for these partitions to everybody connected: the last owner may have died."""
        for stream in self._open:
            here = list(stream.connections.values())
            for start in range(0, len(here), _HEADS_CHUNK):
                self._heads.send(stream, here[start : start + _HEADS_CHUNK], set(numbers))

    def owners_changed(self) -> None:
        """Tell the gateways which process owns which partition, once this process has an address."""
        if self._ownership.address:
            item = self._owners()
            for stream in self._open:
                if stream.worker_id:
                    stream.put(item)

    def _owners(self) -> bytes:
        owners = pb.Owners(
            address=self._ownership.address,
            partition_count=PARTITIONS,
            links=len(self._open),
        )
        for member, theirs in self._ownership.owners():
            shard = owners.shards.add(name=member.name, address=member.address)
            for number, term in theirs:
                shard.partitions.add(number=number, term=term)
        return pb.LinkResponse(items=[pb.LinkDownItem(owners=owners)]).SerializeToString()

    # ------------------------------------------------------------------------------------ the RPC

    async def link(
        self,
        requests: AsyncIterator[pb.LinkRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[bytes]:
        """Serve one stream."""
        principal = await rpc.authenticate_stream(context, self._verifier, ROLES, METHOD)
        if principal.tenant != ANY_TENANT:
            await rpc.refuse(
                context, PermissionDenied("a link needs a service token of all tenants")
            )
        if self._stopping:
            await rpc.refuse(context, stopping())
        stream = Stream()
        self._open.add(stream)
        self._keep_pace()
        reading = asyncio.create_task(self._read(stream, requests))
        try:
            async for batch in stream.batches():
                yield batch
            if self._stopping:
                await rpc.refuse(context, stopping())
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            self._open.discard(stream)
            self._drop(stream)
            self._keep_pace()

    def _keep_pace(self) -> None:
        """The number of streams changed: re-pace all of them and tell the gateways."""
        for stream in self._open:
            stream.pace = link_pace(len(self._open), longest=_DOWN_SECONDS)
        self.owners_changed()

    async def drain(self) -> None:
        """End all streams; the gateway's workers open new ones, elsewhere or later."""
        self._stopping = True
        for stream in list(self._open):
            stream.turns.cancel()
            stream.end()

    async def _read(self, stream: Stream, requests: AsyncIterator[pb.LinkRequest]) -> None:
        try:
            async for request in requests:
                attached: list[Connection] = []
                for item in request.items:
                    try:
                        self._handle(stream, item, attached)
                    except Exception as error:  # noqa: BLE001 - only this item fails: repeated, it would fail again
                        self._failed(stream, item, error)
                if attached:
                    self._heads.send(stream, attached)
        except Exception as error:  # noqa: BLE001 - the stream ends; the worker opens another one
            get_logger().warning("link_failed", worker_id=stream.worker_id, exc_info=error)
        stream.end()

    @staticmethod
    def _failed(stream: Stream, item: pb.LinkUpItem, error: Exception) -> None:
        kind = item.WhichOneof("kind")
        get_logger().error("item_failed", kind=kind, exc_info=error)
        if kind is not None and (answer := link_frames.refusal(kind, getattr(item, kind))):
            stream.put(answer)

    def _handle(self, stream: Stream, item: pb.LinkUpItem, attached: list[Connection]) -> None:
        kind = item.WhichOneof("kind")
        if kind == "attach":
            connection = self._attach(stream, item.attach)
            if connection is not None:
                attached.append(connection)
        elif kind == "hello":
            stream.worker_id, stream.generation = item.hello.worker_id, item.hello.generation
            # Without an address, `owners_changed` tells of the owners once this process has started.
            if self._ownership.address:
                stream.put(self._owners())
        elif kind == "snapshot_end":
            self._complete(stream)
        elif kind is not None and kind != "snapshot_begin":
            payload = getattr(item, kind)
            # A connection that isn't here left before its frame arrived.
            connection = stream.connections.get(payload.connection_id)
            if connection is not None:
                self._frames.handle(connection, kind, payload)

    # -------------------------------------------------------------------------------- connections

    def _attach(self, stream: Stream, attach: pb.Attach) -> Connection | None:
        who = Actor(
            tenant=attach.tenant_id,
            role=ActorRole(attach.user.role),
            subject=attach.user.subject,
            name=attach.user.display_name,
            profile=_profile(attach.profile) if attach.HasField("profile") else None,
        )
        connection = Connection(
            stream,
            attach.connection_id,
            who,
            device_id=attach.device_id,
            connected_at=attach.connect_micros,
            parked=attach.parked,
        )
        return connection if self._connections.add(connection) else None

    def _complete(self, stream: Stream) -> None:
        """End the worker's earlier stream: the snapshot on this one is complete."""
        earlier = self._workers.get(stream.worker_id)
        if earlier is not None and earlier.generation >= stream.generation:
            return
        self._workers[stream.worker_id] = stream
        if earlier is not None:
            self._drop(earlier)
            earlier.close()

    def _drop(self, stream: Stream) -> None:
        stream.closed = True
        stream.turns.cancel()
        for connection in list(stream.connections.values()):
            self._connections.remove(connection)
        if self._workers.get(stream.worker_id) is stream:
            del self._workers[stream.worker_id]


def _profile(profile: pb.Profile) -> Profile:
    ids = tuple((each.namespace, each.value) for each in profile.ids)
    return Profile(profile.email, profile.mobile, ids)
