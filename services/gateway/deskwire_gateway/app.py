"""Puts the gateway together."""

from __future__ import annotations

import asyncio
import resource
from dataclasses import asdict
from functools import partial
from typing import Final

import grpc
from redis.asyncio import Redis

from deskwire_common import rpc
from deskwire_common.config import split_address
from deskwire_common.lifecycle import Runtime
from deskwire_common.logging import get_logger
from deskwire_gateway import supervisor, websocket, worker
from deskwire_gateway.actions import GatewayActions
from deskwire_gateway.api import AUTHORIZATION, CONNECT, SERVICE, GatewayApi
from deskwire_gateway.calls import Calls
from deskwire_gateway.config import Settings
from deskwire_gateway.directory import Directory
from deskwire_gateway.session import Limits
from deskwire_gateway.sessions import Sessions
from deskwire_gateway.shards import Shards

_OTHER_DESCRIPTORS: Final = 500
"""What a process has open beside its WebSockets."""


async def build(settings: Settings, runtime: Runtime[Settings]) -> None:
    """Start everything; the server answers when this returns. Chat and Redis need not be there yet."""
    worker_id = runtime.ids.uuid7()
    directory = Directory(Redis.from_url(settings.redis_url, socket_timeout=2), worker_id)
    runtime.stack.push_async_callback(directory.close)
    sessions = Sessions(
        Limits(
            ping_interval=settings.ping_interval,
            visitor_ping_interval=settings.visitor_ping_interval,
            hello_timeout=settings.hello_timeout,
            max_message_bytes=settings.max_message_bytes,
            max_unacked_sends=settings.max_unacked_sends,
            max_calls=settings.max_calls,
            max_pending_sends=settings.max_pending_sends,
            send_rate=settings.send_rate,
            send_burst=settings.send_burst,
            tenant_send_rate=settings.tenant_send_rate,
            backoff_initial=settings.backoff_initial,
            backoff_max=settings.backoff_max,
            resume_window=settings.resume_window,
            ring_bytes=settings.ring_bytes,
            ring_total_bytes=settings.ring_total_bytes,
        ),
        runtime.verifier,
        runtime.validator,
        runtime.ids,
        runtime.clock,
        trace=bool(settings.otlp_endpoint),
        opened=directory.changed,
        ended=directory.changed,
    )
    directory.bind(sessions)
    seed_name = split_address(settings.chat_target)[0]

    def connect(target: str) -> grpc.aio.Channel:
        # Shards say where they are as host:port; their certificates have the name that all are called by.
        name = "" if target == settings.chat_target else seed_name
        return rpc.make_channel(target, tls=runtime.tls, bare=True, server_name=name)

    shards = Shards(settings.chat_target, connect, runtime.signer, sessions, worker_id)
    channel = rpc.make_channel(settings.chat_target, tls=runtime.tls)
    runtime.stack.push_async_callback(channel.close)
    calls = Calls(
        channel,
        sessions,
        runtime.verifier,
        runtime.validator,
        max_result_bytes=settings.max_result_bytes,
        trace=bool(settings.otlp_endpoint),
    )
    runtime.stack.push_async_callback(calls.close)
    sessions.bind(shards, calls)
    runtime.spawn("shards", shards.run)
    runtime.spawn("directory", directory.run)
    runtime.spawn("wheel", partial(worker.turn_wheel, sessions))

    if settings.worker is not None:
        runtime.spawn("parent", supervisor.end_with_parent)
    shared = settings.worker is not None
    limit = room_for(settings.max_connections)
    get_logger().info(
        "limits",
        **asdict(sessions.limits),
        max_connections=limit,
        accept_rate=settings.accept_rate,
        max_buffered_bytes=settings.max_buffered_bytes,
        worker=settings.worker,
    )
    host, port = settings.ws_address
    server = await websocket.listen(
        sessions,
        host,
        port,
        max_connections=limit,
        max_buffered=settings.max_buffered_bytes,
        accept_rate=settings.accept_rate,
        reuse_port=shared,
    )
    runtime.stack.callback(server.close)
    runtime.extra_ports["ws"] = server.sockets[0].getsockname()[1]

    async def drain() -> None:
        server.close()
        await asyncio.gather(shards.drain(), calls.drain())
        sessions.drain()

    runtime.on_drain(drain)
    api = GatewayApi(sessions, GatewayActions(directory))
    await runtime.serve(
        [api.register],
        [SERVICE],
        AUTHORIZATION,
        inline_auth=frozenset({CONNECT}),
        reuse_port=shared,
    )


def room_for(wanted: int) -> int:
    """Raise the descriptor limit as far as it goes; return how many connections fit beside everything else."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard - _OTHER_DESCRIPTORS)
