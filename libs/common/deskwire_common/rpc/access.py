"""Who may call what, and what the metadata of a call tells about its caller."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from grpc_status import rpc_status

from deskwire_common.auth import ANY_TENANT, Principal, Role, TokenVerifier
from deskwire_common.errors import DeskwireError, PermissionDenied, to_status

Authorization = Mapping[str, Collection[Role]]
"""Full method name (`/deskwire.chat.v1.AgentService/GetAgent`) → who may call it."""


@dataclass(frozen=True, slots=True)
class Access:
    """Rules that the authorisation table can't express.

    `public` methods take no token: the request itself names the caller. `suite` methods are for operators of all
    tenants, who may call nothing else. `admit` looks at each verified caller and raises for one that isn't let in.
    """

    public: Collection[str] = frozenset()
    suite: Collection[str] = frozenset()
    admit: Callable[[Principal], None] = field(default=lambda _principal: None)


def metadata_value(context: grpc.aio.ServicerContext[Any, Any], name: str) -> str:
    """The first value of a call's metadata, "" when there is none."""
    for key, value in context.invocation_metadata() or ():
        if key == name and isinstance(value, str):
            return value
    return ""


def bearer_token(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The token of `authorization: Bearer …`, "" when there is none."""
    scheme, _, token = metadata_value(context, "authorization").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


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
        principal = verifier.verify(bearer_token(context))
        authorize(method, roles, principal)
    except DeskwireError as error:
        await refuse(context, error)
    return principal


async def refuse(context: grpc.aio.ServicerContext[Any, Any], error: DeskwireError) -> NoReturn:
    """End a call with an error's Status and details."""
    await context.abort_with_status(rpc_status.to_status(to_status(error)))
