"""Admission: which tenants and agents are disabled, in memory as of the last read of the database."""

from __future__ import annotations

from collections.abc import Iterable

from deskwire_chat.domain.access import agent_disabled, tenant_disabled
from deskwire_chat.domain.actors import ActorRole
from deskwire_common.auth import Principal, Role
from deskwire_common.errors import DeskwireError


class Admission:
    """Who is disabled. Everybody else is admitted: tenants and agents needn't be created to be used."""

    def __init__(self) -> None:
        self._tenants: frozenset[str] = frozenset()
        self._agents: frozenset[tuple[str, str]] = frozenset()

    def update(self, tenants: Iterable[str], agents: Iterable[tuple[str, str]]) -> bool:
        """Replace the disabled tenants and agents; return whether any of them is newly disabled."""
        before = self._tenants, self._agents
        self._tenants, self._agents = frozenset(tenants), frozenset(agents)
        return bool(self._tenants - before[0] or self._agents - before[1])

    def refusal(self, tenant: str, subject: str, *, agent: bool) -> DeskwireError | None:
        """Return why a user isn't admitted, or None when they are; `agent`: the user is an agent or a bot."""
        if tenant in self._tenants:
            return tenant_disabled(tenant)
        if agent and (tenant, subject) in self._agents:
            return agent_disabled(subject)
        return None

    def refusal_of(self, user: tuple[str, int, str]) -> DeskwireError | None:
        """Return why a connected user (tenant, role, subject) isn't admitted any more, or None."""
        tenant, role, subject = user
        return self.refusal(tenant, subject, agent=role in {ActorRole.AGENT, ActorRole.BOT})

    def admit(self, principal: Principal) -> None:
        """Raise PermissionDenied (TENANT_DISABLED, AGENT_DISABLED) for a caller who isn't admitted."""
        refusal = self.refusal(
            principal.tenant,
            principal.subject,
            agent=principal.role in {Role.AGENT, Role.BOT},
        )
        if refusal is not None:
            raise refusal
