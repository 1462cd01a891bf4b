"""The agents and bots that routing knows, by tenant and agent_id."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from deskwire_chat.domain.agents import Agent
from deskwire_chat.routing.capacity import Capacity
from deskwire_chat.routing.offers import AgentKey


class AgentIndex:
    """Agents and bots, each with its capacity."""

    def __init__(self, now: Callable[[], int]) -> None:
        """`now` gives microseconds."""
        self._now = now
        self._known: dict[AgentKey, Capacity] = {}

    def __iter__(self) -> Iterator[AgentKey]:
        """Yield the keys of all."""
        return iter(self._known)

    def known(self, tenant: str, agent_id: str) -> Capacity:
        """Return the capacity of an agent; a new, empty one for an agent who wasn't known."""
        found = self._known.get((tenant, agent_id))
        if found is None:
            found = self._known[tenant, agent_id] = Capacity(agent_id, self._now())
        return found

    def forget(self, key: AgentKey) -> None:
        """Remove an agent."""
        del self._known[key]

    def get(self, key: AgentKey) -> Agent | None:
        """Return an agent as routing knows them; None: not known."""
        found = self._known.get(key)
        return found.agent if found is not None else None

    def is_connected(self, tenant: str, agent_id: str) -> bool:
        """Whether a connection of the agent is open at this process."""
        found = self._known.get((tenant, agent_id))
        return found is not None and found.connections > 0

    def changes_of(self, key: AgentKey) -> int | None:
        """Return a count that is the same twice if nothing happened to the agent between; None while proposals pend."""
        found = self.known(*key)
        return None if found.pending else found.changes

    def quiet(self) -> dict[AgentKey, int]:
        """Return `changes_of` of all agents without pending proposals."""
        return {key: found.changes for key, found in self._known.items() if not found.pending}

    def now(self) -> int:
        """Return the time in microseconds by which `absent` counts."""
        return self._now()

    def absent(self) -> dict[AgentKey, int]:
        """Return the agents and bots who have work items and no connection here, and since when (microseconds)."""
        return {
            key: found.gone_since
            for key, found in self._known.items()
            if found.agent is not None and found.agent.active and found.connections <= 0
        }
