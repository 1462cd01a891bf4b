"""What a walk sees: both screens, the hub's events, and the demo CRM's database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from demo_crm.store import CrmDatabase
from deskwire.gateway.v1 import frame_pb2
from deskwire_cli import tail
from deskwire_cli.machine.problem import Problem
from deskwire_cli.suite import Suite, open_channel
from deskwire_common.auth import Role

T = TypeVar("T")
Event = dict[str, Any]

PATIENCE: Final = 20.0
"""Seconds that anything may take before the walk has failed."""
_LOOK: Final = 0.01
"""Seconds between looks at what doesn't notify the walk (the CRM's own database)."""


class Screen:
    """The pushes that one person's client received, oldest first."""

    def __init__(self, news: asyncio.Event) -> None:
        self.pushes: list[frame_pb2.Push] = []
        self._news = news

    def see(self, push: frame_pb2.Push) -> None:
        """Take a push: the client's `on_push`."""
        self.pushes.append(push)
        self._news.set()

    def message(
        self, conversation_id: str, *, text: str = "", sender: int = 0
    ) -> frame_pb2.Push | None:
        """Return the first message of the conversation with this text, or from a sender of this role."""
        for push in self.pushes:
            message = push.message
            if message.conversation_id == conversation_id and (
                message.content.text == text or message.sender.role == sender != 0
            ):
                return push
        return None


class Witness:
    """Everything that a walk sees of a running suite."""

    def __init__(self, suite: Suite) -> None:
        self._suite = suite
        self._news = asyncio.Event()
        self.crm = CrmDatabase(suite.crm_database)
        self._crm_had = len(self.crm.received())
        self.visitor = Screen(self._news)
        self.agent = Screen(self._news)
        self.events: list[Event] = []
        """What the hub showed since the walk began, each event with its place on Kafka."""

    def of(self, event_type: str) -> list[Event]:
        """Return the hub's events of a type."""
        return [each for each in self.events if each["event_type"] == event_type]

    def received(self) -> list[Event]:
        """Return what the CRM was sent since the walk began, from its database."""
        return self.crm.received()[self._crm_had :]

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Collect the hub's events of this tenant from now on."""
        token = self._suite.token(Role.OPERATOR, "deskwire-walk")
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def follow() -> None:
            async with open_channel(self._suite.events) as channel:
                start = tail.start_at("latest", now=datetime.now(UTC))
                async for delivery in tail.subscribe(channel, token, start):
                    self.events += delivery.events
                    self._news.set()
                    if not begun.done():
                        begun.set_result(None)

        async with asyncio.timeout(PATIENCE):
            following = asyncio.create_task(follow())
            await asyncio.wait([following, begun], return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()
        try:
            yield
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def until(self, seen: Callable[[], T | None], what: str) -> T:
        """Wait until it is there. Raises Problem after a while, naming what is missing."""
        deadline = time.perf_counter() + PATIENCE
        while not (found := seen()):
            if time.perf_counter() > deadline:
                raise Problem(f"the walk waited {PATIENCE:g} s in vain for {what}")
            self._news.clear()
            try:
                async with asyncio.timeout(_LOOK):
                    await self._news.wait()
            except TimeoutError:
                continue
        return found
