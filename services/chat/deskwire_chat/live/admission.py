"""Who of the connected users is disabled, in memory as of the last read of the database."""

from __future__ import annotations

from deskwire_chat.domain.actors import ActorRole
from deskwire_common import auth
from deskwire_common.errors import DeskwireError


class Admission(auth.Admission):
    """Who is disabled, also asked by what a connection knows of its user."""

    def refusal_of(self, user: tuple[str, int, str]) -> DeskwireError | None:
        """Return why a connected user (tenant, role, subject) isn't admitted any more, or None."""
        tenant, role, subject = user
        return self.refusal(tenant, subject, agent=role in {ActorRole.AGENT, ActorRole.BOT})
