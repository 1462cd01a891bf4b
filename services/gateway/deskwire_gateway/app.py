"""Puts the gateway together."""

from __future__ import annotations

import asyncio
import itertools
import resource
from dataclasses import asdict, fields
from functools import partial
from typing import Final

import grpc
from redis.asyncio import Redis

from deskwire_common import rpc
from deskwire_common.config import split_address
from deskwire_common.lifecycle import Runtime
from deskwire_common.logging import get_logger
from deskwire_gateway import supervisor, websocket
from deskwire_gateway.actions import GatewayActions
from deskwire_gateway.admission import Admission
from deskwire_gateway.api import TABLE, Connections
from deskwire_gateway.calls import Calls
from deskwire_gateway.config import Settings
from deskwire_gateway.directory import Directory
from deskwire_gateway.handshake import Handshake
from deskwire_gateway.in_flight import InFlight
from deskwire_gateway.limits import Limits
from deskwire_gateway.link_pool import LinkPool
from deskwire_gateway.owner_map import OwnerMap
from deskwire_gateway.presence import Presence
from deskwire_gateway.protocol import Protocol
from deskwire_gateway.registry import Registry
from deskwire_gateway.sends import Sends
from deskwire_gateway.session import Session
from deskwire_gateway.signals import Signals
from deskwire_gateway.syncs import Syncs
from deskwire_gateway.wheel import every_second

_OTHER_DESCRIPTORS: Final = 500
"""File descriptors of a process beside those of its WebSockets."""


async def build(settings: Settings, runtime: Runtime[Settings]) -> None:
    """Start everything; the server answers when this returns. Chat and Redis need not be there yet."""
    worker_id = runtime.ids.uuid7()
    sessions: dict[int, Session] = {}
    redis = Redis.from_url(settings.redis_url, socket_timeout=2)
    directory = Directory(redis, worker_id, sessions)
    runtime.stack.push_async_callback(directory.close)
    limits, owners = _limits(settings), OwnerMap()
    in_flight = InFlight(limits.max_calls)
    registry = Registry(
        limits,
        runtime.ids,
        runtime.clock,
        sessions,
        Presence(owners),
        in_flight,
        changed=directory.changed,
    )
    protocol = _with_chat(settings, runtime, registry, in_flight, owners, worker_id)
    runtime.spawn("directory", directory.run)
    runtime.spawn("wheel", partial(every_second, registry.tick))
    if settings.worker is not None:
        runtime.spawn("parent", supervisor.end_with_parent)
    await _serve(settings, runtime, protocol, directory)


def _limits(settings: Settings) -> Limits:
    """Return the settings that limit connections: Limits has the same names."""
    given = {field.name: getattr(settings, field.name) for field in fields(Limits)}
    return Limits(**given | {"max_connections": room_for(settings.max_connections)})


def _with_chat(
    settings: Settings,
    runtime: Runtime[Settings],
    registry: Registry,
    in_flight: InFlight,
    owners: OwnerMap,
    worker_id: str,
) -> Protocol:
    """Make the parts that lead to chat, and the protocol that uses them."""
    seed_name = split_address(settings.chat_target)[0]

    def connect(target: str) -> grpc.aio.Channel:
        # Shards report their address as host:port; their certificates have the one name by which all are called.
        name = "" if target == settings.chat_target else seed_name
        return rpc.make_channel(target, tls=runtime.tls, bare=True, server_name=name)

    trace = bool(settings.otlp_endpoint)
    channel = rpc.make_channel(settings.chat_target, tls=runtime.tls)
    runtime.stack.push_async_callback(channel.close)
    calls = Calls(
        channel,
        in_flight,
        registry,
        runtime.verifier,
        runtime.validator,
        max_result_bytes=settings.max_result_bytes,
        trace=trace,
    )
    runtime.stack.push_async_callback(in_flight.close)
    numbers = itertools.count(1)
    syncs = Syncs(owners, registry, numbers)
    admission = Admission(registry.limits)
    sends = Sends(owners, registry, syncs, admission, numbers)
    links = LinkPool(
        settings.chat_target,
        connect,
        runtime.signer,
        worker_id,
        registry,
        owners,
        sends,
        syncs,
    )
    runtime.spawn("links", links.run)

    async def drain() -> None:
        await asyncio.gather(sends.drain(), in_flight.drain())
        registry.drain()

    runtime.on_drain(drain)
    return Protocol(
        registry,
        Handshake(registry, runtime.verifier, runtime.validator),
        admission,
        sends,
        syncs,
        Signals(owners),
        calls,
        runtime.validator,
        runtime.clock,
        trace=trace,
    )


async def _serve(
    settings: Settings, runtime: Runtime[Settings], protocol: Protocol, directory: Directory
) -> None:
    """Open the ports."""
    shared = settings.worker is not None
    get_logger().info(
        "limits",
        **asdict(protocol.registry.limits),
        accept_rate=settings.accept_rate,
        max_buffered_bytes=settings.max_buffered_bytes,
        worker=settings.worker,
    )
    host, port = settings.ws_address
    server = websocket.listen(
        protocol,
        host,
        port,
        max_buffered=settings.max_buffered_bytes,
        accept_rate=settings.accept_rate,
        reuse_port=shared,
    )
    runtime.stack.callback(server.close)
    runtime.extra_ports["ws"] = server.port

    async def stop_listening() -> None:
        server.close()

    runtime.on_drain(stop_listening)
    await runtime.serve(TABLE, Connections(protocol), GatewayActions(directory), reuse_port=shared)


def room_for(wanted: int) -> int:
    """Raise the descriptor limit as far as it goes; return how many connections fit beside everything else."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard - _OTHER_DESCRIPTORS)
