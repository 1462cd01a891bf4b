"""Who causes a change: people, programs and deskwire itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from deskwire_common.auth import Principal, Profile, Role

HOME_ORIGIN: Final = "deskwire"
"""The origin of changes that begin in the suite."""


UserKey = tuple[str, int, str]
"""Tenant, role, subject: who gets pushes."""


class ActorRole(IntEnum):
    """The role of whoever writes a message; the numbers are those of the contract and the database."""

    VISITOR = 1
    AGENT = 2
    BOT = 3
    INTEGRATION = 4
    OPERATOR = 5
    SERVICE = 6
    SYSTEM = 7


_ROLES: Final = {
    Role.VISITOR: ActorRole.VISITOR,
    Role.AGENT: ActorRole.AGENT,
    Role.BOT: ActorRole.BOT,
    Role.INTEGRATION: ActorRole.INTEGRATION,
    Role.OPERATOR: ActorRole.OPERATOR,
    Role.SERVICE: ActorRole.SERVICE,
}


@dataclass(frozen=True, slots=True)
class Actor:
    """Who causes a change: the tenant, role, subject, name, origin and profile of a verified token."""

    tenant: str
    role: ActorRole
    subject: str
    name: str = ""
    origin: str = HOME_ORIGIN
    profile: Profile | None = None

    @classmethod
    def of(cls, principal: Principal) -> Actor:
        """Return the actor of a token. The origin is the system of an integration's token, never one from a request."""
        return cls(
            tenant=principal.tenant,
            role=_ROLES[principal.role],
            subject=principal.subject,
            name=principal.name,
            origin=principal.system or HOME_ORIGIN,
            profile=principal.profile,
        )

    @classmethod
    def system(cls, tenant: str) -> Actor:
        """Return deskwire itself as the actor of the greeting and of routing's decisions."""
        return cls(tenant=tenant, role=ActorRole.SYSTEM, subject=HOME_ORIGIN, name=HOME_ORIGIN)
