"""How many work items an agent or a bot can take now, as routing sees it."""

from __future__ import annotations

from dataclasses import replace

from deskwire_chat.domain.agents import Agent, Status
from deskwire_chat.domain.work import NO_SKILLS


class Capacity:
    """An agent or bot as routing sees it; a policy.Candidate.

    `pending` counts proposals that the log hasn't decided, `offered` open offers. A `silent` agent has let an offer
    pass. A `doubted` agent's state in memory was wrong, and their row is read again. `changes` counts what happened to
    them, so that a reader of their row sees whether memory is newer.

    Connections of people and bots are counted apart: a token's role may differ from that of the agent with its subject.
    """

    __slots__ = (
        "agent",
        "agent_id",
        "bots",
        "changes",
        "doubted",
        "gone_since",
        "idle_since",
        "offered",
        "pending",
        "people",
        "silent",
    )

    def __init__(self, agent_id: str, now: int) -> None:
        self.agent_id = agent_id
        self.agent: Agent | None = None
        self.people = 0
        self.bots = 0
        self.gone_since = now
        self.pending = 0
        self.offered = 0
        self.silent = False
        self.idle_since = 0
        self.changes = 0
        self.doubted = False

    @property
    def is_bot(self) -> bool:
        """Whether it is a bot; False until the row was read."""
        return self.agent is not None and self.agent.bot

    @property
    def skills(self) -> frozenset[str]:
        """The agent's skills; the rows of agents have none."""
        return NO_SKILLS

    @property
    def connections(self) -> int:
        """How many connections of the agent are open at this process."""
        return self.bots if self.is_bot else self.people

    @property
    def room(self) -> int:
        """How many more work items the agent takes now."""
        agent = self.agent
        if (
            agent is None
            or self.connections <= 0
            or self.doubted
            or self.silent
            or not takes_work(agent)
        ):
            return 0
        return agent.capacity - agent.active - self.pending - self.offered

    def take_row(self, agent: Agent | None) -> None:
        """Take an agent's row as the truth."""
        self.agent = agent
        self.doubted = False
        self.changes += 1
        if agent is not None:
            # Another process gave them a work item.
            self.idle_since = max(self.idle_since, agent.idle_since)

    def count_connection(self, step: int, *, bot: bool) -> None:
        """Count a connection that opened (1) or closed (-1)."""
        if bot:
            self.bots += step
        else:
            self.people += step

    def count_active(self, step: int) -> None:
        """Count one work item more (1) or less (-1)."""
        self.changes += 1
        if self.agent is not None:
            self.agent = replace(self.agent, active=max(0, self.agent.active + step))


def takes_work(agent: Agent | None) -> bool:
    """Whether an agent is available, however many work items they have already."""
    return agent is not None and not agent.disabled and agent.status == Status.AVAILABLE
