"""Callers: their roles, the claims of their tokens, and the caller of the call that is being served."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from deskwire.common.v1.error_reason_pb2 import ErrorReason
from deskwire_common import texts
from deskwire_common.errors import Unauthenticated

ANY_TENANT: Final = "*"
"""The tenant of a service that acts for many, and of an operator of the whole suite; nobody else may have it."""

_NAME = re.compile(r"[A-Za-z0-9._:@-]{1,64}")
_SUBJECT = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?")
_MAX_DISPLAY_NAME = 128
_MAX_EMAIL = 254  # RFC 5321, 4.5.3.1.3
_MAX_PHONE = 64
MAX_IDS: Final = 15
"""Most entries of `ids`: a customer has up to 16 identities, and the subject is one."""
_MAX_ID = 255


class Role(StrEnum):
    """The role of a token's holder; the values are those of the `role` claim."""

    VISITOR = "visitor"
    AGENT = "agent"
    BOT = "bot"
    INTEGRATION = "integration"
    OPERATOR = "operator"
    SERVICE = "service"


_ANY_TENANT_ROLES: Final = frozenset({Role.SERVICE, Role.OPERATOR})


@dataclass(frozen=True, slots=True)
class Profile:
    """What a visitor's token vouches for, as the website has verified it. `ids`: (system, the visitor's id there)."""

    email: str = ""
    mobile: str = ""
    ids: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Principal:
    """A verified caller. `system` is the system id of an integration (`crm:main`), else empty.

    `profile` is a visitor's, where the token has one.
    """

    tenant: str
    role: Role
    subject: str
    system: str = ""
    name: str = ""
    profile: Profile | None = None

    @property
    def runs_the_suite(self) -> bool:
        """Whether this is an operator of all tenants."""
        return self.role is Role.OPERATOR and self.tenant == ANY_TENANT


def is_name(text: str) -> bool:
    """Whether a tenant or a system may have this name."""
    return _NAME.fullmatch(text) is not None


def is_subject(text: str) -> bool:
    """Whether a caller may have this id: 1 to 255 characters of printable ASCII, no blank at an end.

    Ids of the usual sign-in systems are: `auth0|5f7c`, `ana+shop@example.org`, `q83vEjRWeJA=`. OpenID Connect Core, 2,
    has the same limits. A blank at the end would be the same as none to MariaDB.
    """
    return _SUBJECT.fullmatch(text) is not None


def checked_principal(principal: Principal) -> Principal:
    """Return `principal`. Raises ValueError that names a part whose form is wrong."""
    any_tenant = principal.tenant == ANY_TENANT and principal.role in _ANY_TENANT_ROLES
    if not any_tenant and not is_name(principal.tenant):
        raise ValueError("tenant must be 1-64 of A-Z a-z 0-9 . _ : @ -")
    if not is_subject(principal.subject):
        raise ValueError("subject must be 1-255 printable ASCII characters, no blank at an end")
    if principal.role is Role.INTEGRATION:
        if not is_name(principal.system):
            raise ValueError("an integration needs a system id, such as crm:main")
    elif principal.system:
        raise ValueError("only an integration has a system id")
    if why := name_fault(principal.name):
        raise ValueError(f"name {why}")
    if principal.profile is not None:
        if principal.role is not Role.VISITOR:
            raise ValueError("only a visitor's token has email, phone_number and ids")
        _check_profile(principal.profile)
    return principal


def _check_profile(profile: Profile) -> None:
    if why := email_fault(profile.email):
        raise ValueError(f"email {why}")
    if why := mobile_fault(profile.mobile):
        raise ValueError(f"phone_number {why}")
    if len(profile.ids) > MAX_IDS:
        raise ValueError(f"ids has more than {MAX_IDS} entries")
    for system, value in profile.ids:
        if why := id_fault(system, value):
            raise ValueError(f"an entry of ids {why}")


def _fault(text: str, longest: int) -> str:
    if len(text) > longest:
        return f"is longer than {longest} characters"
    return "" if texts.line_or_none(text) == text else f"{texts.LINE_RULE}, trimmed"


def name_fault(name: str) -> str:
    """Return what is wrong with a name to show; "" when nothing is."""
    return _fault(name, _MAX_DISPLAY_NAME)


def email_fault(email: str) -> str:
    """Return what is wrong with an e-mail address; "" when nothing is."""
    return _fault(email, _MAX_EMAIL)


def mobile_fault(mobile: str) -> str:
    """Return what is wrong with a phone number; "" when nothing is."""
    return _fault(mobile, _MAX_PHONE)


def id_fault(system: str, value: str) -> str:
    """Return what is wrong with a person's id in another system; "" when nothing is."""
    if not is_name(system) or system == Role.VISITOR:
        return "is not of a system such as crm:main"
    return _fault(value, _MAX_ID) if value else "is empty"


_PRINCIPAL: ContextVar[Principal] = ContextVar("deskwire_principal")


def current_principal() -> Principal:
    """Return the caller of the call that is being served. Raises Unauthenticated outside of a call."""
    principal = _PRINCIPAL.get(None)
    if principal is None:
        raise Unauthenticated(
            "a bearer token is needed", reason=ErrorReason.ERROR_REASON_TOKEN_MISSING
        )
    return principal


_PEER: ContextVar[str] = ContextVar("deskwire_peer", default="")


def current_peer() -> str:
    """Return from where a call without a token comes: an address, or a network of them; "" outside of one."""
    return _PEER.get()


def set_current_peer(peer: str) -> None:
    """Make `peer` the origin of the call for the rest of this task. For the server."""
    _PEER.set(peer)


def set_current_principal(principal: Principal) -> None:
    """Make `principal` the caller for the rest of this task. For the server; others use `acting_as`."""
    _PRINCIPAL.set(principal)


@contextmanager
def acting_as(principal: Principal) -> Iterator[None]:
    """Run a block on behalf of `principal`: for consumers and timers, which have no token."""
    token = _PRINCIPAL.set(principal)
    try:
        yield
    finally:
        _PRINCIPAL.reset(token)
