"""Admission: which tenants and agents are disabled. All others are admitted: they needn't be created to be used."""

from __future__ import annotations

from collections.abc import Iterable

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_common.auth.principals import Principal, Role
from deskwire_common.errors import DeskwireError, PermissionDenied

AgentKey = tuple[str, str]
"""Tenant and agent_id."""


class Admission:
    """Who is disabled, as of the last `update`: chat reads it in its database, the others hear of it on Kafka."""

    def __init__(self) -> None:
        self._tenants: frozenset[str] = frozenset()
        self._agents: frozenset[AgentKey] = frozenset()
        self.generation = 0
        """Grows when somebody else is disabled: those who are connected must be looked at again."""

    def update(self, tenants: Iterable[str], agents: Iterable[AgentKey]) -> bool:
        """Replace the disabled tenants and agents; return whether any of them is newly disabled."""
        before = self._tenants, self._agents
        self._tenants, self._agents = frozenset(tenants), frozenset(agents)
        fewer = bool(self._tenants - before[0] or self._agents - before[1])
        self.generation += fewer
        return fewer

    def refusal(self, tenant: str, subject: str, *, agent: bool) -> DeskwireError | None:
        """Return why a user isn't admitted, or None when they are; `agent`: the user is an agent or a bot."""
        if tenant in self._tenants:
            return tenant_disabled(tenant)
        if agent and (tenant, subject) in self._agents:
            return agent_disabled(subject)
        return None

    def admit(self, principal: Principal) -> None:
        """Raise PermissionDenied (TENANT_DISABLED, AGENT_DISABLED) for a caller who isn't admitted."""
        refusal = self.refusal(
            principal.tenant,
            principal.subject,
            agent=principal.role in {Role.AGENT, Role.BOT},
        )
        if refusal is not None:
            raise refusal


def tenant_disabled(tenant_id: str) -> PermissionDenied:
    """Return the error for every caller of a disabled tenant."""
    return PermissionDenied(
        f"tenant {tenant_id} is disabled", reason=reasons.ERROR_REASON_TENANT_DISABLED
    )


def agent_disabled(agent_id: str) -> PermissionDenied:
    """Return the error for a disabled agent."""
    return PermissionDenied(
        f"agent {agent_id} is disabled", reason=reasons.ERROR_REASON_AGENT_DISABLED
    )
