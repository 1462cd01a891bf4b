"""Servers: started, healthy, stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import grpc
from google.protobuf.descriptor_pool import Default
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from deskwire_common.auth import TokenVerifier
from deskwire_common.loops import every
from deskwire_common.rpc.access import Access, Authorization
from deskwire_common.rpc.stages import Stages
from deskwire_common.rpc.transport import ServerLimits, Tls, server_options
from deskwire_common.validation import Validator

_BEGIN_SECONDS: Final = 0.02
_RECHECK_SECONDS: Final = 1.0
"""How long a stream may go on whose caller was shut out, or whose key was taken away."""


class RunningServer:
    """A started server: its health is NOT_SERVING until `set_serving`."""

    def __init__(
        self,
        server: grpc.aio.Server,
        port: int,
        servicer: Any,
        services: Sequence[str],
        stages: Stages,
    ) -> None:
        self._server = server
        self._health = servicer
        self._services = services
        self._stages = stages
        self.port = port
        self._rechecking = asyncio.create_task(self._recheck(), name="recheck-streams")

    async def set_serving(self, serving: bool) -> None:
        """Report SERVING to load balancers and probes."""
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", *self._services):
            await self._health.set(name, status)

    async def _recheck(self) -> None:
        async def recheck() -> None:
            self._stages.recheck()

        await every(_RECHECK_SECONDS, recheck, failed="streams_not_rechecked")

    async def stop(self, grace: float = 5.0) -> None:
        """End all streams with SHUTTING_DOWN, accept no more calls, and give those in flight `grace` seconds."""
        self._rechecking.cancel()
        self._stages.streams.stop()
        # gRPC drops calls that it has received and not begun, which their callers see as CANCELLED without details.
        # At 1,000 new calls a second and after 10 ms of other work: 52 of 1,351, and with this pause 5 of 1,095.
        await asyncio.sleep(_BEGIN_SECONDS)
        await self._server.stop(grace)


def methods_of(services: Sequence[str]) -> list[str]:
    """The full names of all methods of some services, from their descriptors."""
    return [
        f"/{name}/{method.name}"
        for name in services
        for method in Default().FindServiceByName(name).methods
    ]


async def start_server(
    *,
    listen: str,
    registrars: Sequence[Callable[[grpc.aio.Server], None]],
    services: Sequence[str],
    authorization: Authorization,
    verifier: TokenVerifier,
    validator: Validator,
    tls: Tls | None = None,
    inline_auth: Collection[str] = frozenset(),
    access: Access | None = None,
    limits: ServerLimits | None = None,
    reuse_port: bool = False,
) -> RunningServer:
    """Serve on `listen` (host:port; port 0 takes a free one), with `reuse_port` beside others.

    Raises ValueError for a method without an entry in `authorization`, OSError for a port that is taken.
    """
    missing = sorted(set(methods_of(services)).difference(authorization))
    if missing:
        raise ValueError(f"no authorisation rule for {', '.join(missing)}")
    access = access or Access()
    stages = Stages(authorization, verifier, validator, inline_auth, access)
    server = grpc.aio.server(
        interceptors=[stages],
        options=[
            *server_options(limits or ServerLimits(), map(access.limit_of, authorization)),
            # By default a second server on a taken port starts without an error.
            ("grpc.so_reuseport", int(reuse_port)),
        ],
    )
    servicer: Any = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for register in registrars:
        register(server)
    reflection.enable_server_reflection(
        [*services, health.SERVICE_NAME, reflection.SERVICE_NAME], server
    )
    try:
        port = (
            server.add_secure_port(listen, tls.server())
            if tls
            else server.add_insecure_port(listen)
        )
    except RuntimeError as error:
        raise OSError(
            f"can't listen on {listen}: the port is taken, or the address isn't ours"
        ) from error
    running = RunningServer(server, port, servicer, services, stages)
    await running.set_serving(False)
    await server.start()
    return running
