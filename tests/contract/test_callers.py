"""Every RPC that the suite serves, called by nobody and by somebody who may not: refused, and told why."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import Default

from deskwire_cli.launch import Launch
from deskwire_common.auth import KeySet, Role, TokenSigner
from deskwire_common.errors import from_rpc_error

#: Its clients say who they are in Hello; tests/gateway has its refusals.
IN_HELLO = {"/deskwire.gateway.v1.GatewayService/Connect"}


def served(service: str) -> Iterator[tuple[str, MethodDescriptor, frozenset[Role]]]:
    """Path, method and roles of all that one process serves, but for what needs no token."""
    room = importlib.import_module(f"deskwire_{service}.api")
    for path, roles in room.AUTHORIZATION.items():
        _, name, method = path.split("/")
        if path not in IN_HELLO | getattr(room, "PUBLIC", frozenset()):
            found: ServiceDescriptor = Default().FindServiceByName(name)
            yield path, found.methods_by_name[method], roles


async def code_of(
    channel: grpc.aio.Channel, path: str, method: MethodDescriptor, token: str
) -> tuple[grpc.StatusCode, str]:
    """How a call with an empty request ends, and the contract's reason."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    call: Any
    try:
        if method.client_streaming:
            # No request: a write that crosses the refusal makes grpc.aio say INTERNAL in the refusal's place.
            call = channel.stream_stream(path)(metadata=metadata, timeout=10)
            await call.read()
        elif method.server_streaming:
            call = channel.unary_stream(path)(b"", metadata=metadata, timeout=10)
            await call.read()
        else:
            await channel.unary_unary(path)(b"", metadata=metadata, timeout=10)
    except grpc.aio.AioRpcError as error:
        return error.code(), from_rpc_error(error).reason_name
    return grpc.StatusCode.OK, ""


async def test_who_may_call(launch: Launch) -> None:
    signer = TokenSigner(KeySet.load(launch.plan.home.keys_file))
    called = 0
    for service in ("gateway", "chat", "tickets", "events", "cdc"):
        async with grpc.aio.insecure_channel(launch.plan.ports.address(service)) as channel:
            for path, method, roles in served(service):
                assert await code_of(channel, path, method, "") == (
                    grpc.StatusCode.UNAUTHENTICATED,
                    "TOKEN_MISSING",
                ), path
                assert (await code_of(channel, path, method, "nonsense"))[1] == "TOKEN_INVALID", (
                    path
                )
                for role in set(Role) - roles - {Role.SERVICE}:
                    system = "crm:main" if role is Role.INTEGRATION else ""
                    token = signer.mint(tenant="t", role=role, subject="s", system=system)
                    assert await code_of(channel, path, method, token) == (
                        grpc.StatusCode.PERMISSION_DENIED,
                        "ROLE_NOT_ALLOWED",
                    ), (path, role)
                called += 1
    assert called > 35
