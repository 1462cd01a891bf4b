"""Who may call what, and what the metadata of a call tells about its caller."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import grpc
from grpc_status import rpc_status

from deskwire_common.auth import ANY_TENANT, Admission, Principal, Role, TokenVerifier
from deskwire_common.errors import DeskwireError, PermissionDenied, to_status
from deskwire_common.targets import plain

Authorization = Mapping[str, Collection[Role]]
"""Full method name (`/deskwire.chat.v1.AgentService/GetAgent`) → who may call it."""

Metadata = Iterable[tuple[str, str | bytes]]
"""What came with a call: `context.invocation_metadata()`."""

REQUEST_BYTES: Final = 64 * 1024
"""Largest request of a method whose row says nothing else; the contract's rules allow some 33 KB at the most there."""


@dataclass(frozen=True, slots=True)
class Access:
    """Rules that the authorisation table can't express.

    `public` methods take no token: the request itself names the caller. `suite` methods are for operators of all
    tenants, who may call nothing else. `request_bytes` has the methods whose largest request isn't REQUEST_BYTES.
    `admission` tells which of the verified callers aren't let in.
    """

    public: Collection[str] = frozenset()
    suite: Collection[str] = frozenset()
    request_bytes: Mapping[str, int] = field(default_factory=dict)
    admission: Admission = field(default_factory=Admission)

    def limit_of(self, method: str) -> int:
        """Return how many bytes a request, or one message of a stream of them, may have."""
        return self.request_bytes.get(method, REQUEST_BYTES)


def metadata_value(metadata: Metadata | None, name: str) -> str:
    """The first value of a call's metadata, "" when there is none."""
    for key, value in metadata or ():
        if key == name and isinstance(value, str):
            return value
    return ""


def bearer_token(metadata: Metadata | None) -> str:
    """The token of `authorization: Bearer …`, "" when there is none."""
    scheme, _, token = metadata_value(metadata, "authorization").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def peer_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The address of a caller without its port; of IPv6 the /64, as one machine has so many addresses."""
    _, _, place = str(context.peer()).partition(":")
    host = place.rpartition(":")[0].removeprefix("%5B").removesuffix("%5D").strip("[]")
    try:
        address = plain(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return "?"
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))


def authorize(
    method: str, roles: Collection[Role], principal: Principal, *, suite: Collection[str] = ()
) -> None:
    """Raise PermissionDenied unless this caller may make this call. `suite`: methods for operators of all tenants."""
    name = method.rpartition("/")[2]
    if principal.role not in roles:
        raise PermissionDenied(f"role {principal.role.value} may not call {name}")
    if principal.runs_the_suite and method not in suite:
        raise PermissionDenied(f"{name} needs a token of one tenant, not of tenant {ANY_TENANT}")
    if method in suite and not principal.runs_the_suite:
        raise PermissionDenied(f"{name} is for operators of the suite: tenant {ANY_TENANT}")


async def authenticate_stream(
    context: grpc.aio.ServicerContext[Any, Any],
    verifier: TokenVerifier,
    roles: Collection[Role],
    method: str,
) -> Principal:
    """For `inline_auth` handlers: return the caller, or end the call with the status that explains the refusal."""
    try:
        principal = verifier.verify(bearer_token(context.invocation_metadata()))
        authorize(method, roles, principal)
    except DeskwireError as error:
        await refuse(context, error)
    return principal


async def refuse(context: grpc.aio.ServicerContext[Any, Any], error: DeskwireError) -> NoReturn:
    """End a call with an error's Status and details."""
    await context.abort_with_status(rpc_status.to_status(to_status(error)))
