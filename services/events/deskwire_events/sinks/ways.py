"""Ways to an adapter: over the network, to an address that a rule allows, or to a process of the hub's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, TypeAlias

import grpc

from deskwire_common import loops
from deskwire_common.rpc import Tls, make_channel
from deskwire_common.targets import TargetRefused, Targets, grpc_target
from deskwire_events.domain import PYTHON, Subscription
from deskwire_events.hosts import AdapterHost, AdapterProcess, NotRunning
from deskwire_events.sinks.names import resolved
from deskwire_events.sinks.port import Away

NOT_THERE: Final = "no adapter answers there that this hub may call"
"""All that a tenant is told, whether a rule forbids the address, nothing answers, or what answers is no adapter."""
_END_SECONDS: Final = 1.0


class Way(ABC):
    """How one adapter is reached, which takes `seconds` at the most."""

    seconds: float = 6.0

    @abstractmethod
    async def open(self) -> grpc.aio.Channel:
        """A channel; the caller closes it. Raises Away."""

    @property
    def lost(self) -> bool:
        """Whether what `open` led to is known to be gone, so that no event is to blame for the next failure."""
        return False

    @abstractmethod
    async def ended(self) -> str:
        """After UNAVAILABLE: how the adapter's process ended, when it is ours and did."""

    @abstractmethod
    async def late(self) -> None:
        """A call took too long."""


OpenWay: TypeAlias = Callable[[Subscription], Way]
"""The way to a subscription's adapter."""


class NetworkWay(Way):
    """To host:port."""

    def __init__(self, adapter: Subscription, targets: Targets, tls: Tls | None) -> None:
        self._target = adapter.target
        self._tenant = adapter.tenant
        self._targets = targets
        self._tls = tls

    async def open(self) -> grpc.aio.Channel:
        """A channel to the addresses that the name stands for now; gRPC resolves nothing itself."""
        host, _, port = self._target.rpartition(":")
        try:
            found = await resolved(self._targets, self._tenant, host, int(port))
        except TargetRefused as error:
            raise Away(NOT_THERE, detail=str(error)) from error
        # bare: retries, deadlines and traces of pushes are the hub's own.
        return make_channel(
            grpc_target(found, int(port)),
            tls=self._tls,
            bare=True,
            server_name=host.removeprefix("[").removesuffix("]"),
            authority=self._target,
        )

    async def ended(self) -> str:
        """Nothing is known of a process of others."""
        return ""

    async def late(self) -> None:
        """Nothing to do: it isn't ours."""


class ProcessWay(Way):
    """To a process of the hub's own."""

    def __init__(self, name: str, host: AdapterHost) -> None:
        self._name = name
        self._host = host
        # A process that begins takes its time; it ends by itself, and others may wait for it too.
        self.seconds = host.start_seconds + 1.0
        self._process: AdapterProcess | None = None

    async def open(self) -> grpc.aio.Channel:
        """A channel to its socket; the process is begun when there is none."""
        try:
            self._process = await self._host.running(self._name)
        except NotRunning as error:
            raise Away(NOT_THERE, detail=str(error), retry_after=error.retry_after) from error
        return make_channel(f"unix:{self._process.socket}", bare=True, authority="localhost")

    @property
    def lost(self) -> bool:
        """Whether it ended."""
        return self._process is not None and self._process.ended.is_set()

    async def ended(self) -> str:
        """How it ended: perhaps one event is to blame. The connection breaks a moment before the end is known."""
        process = self._process
        if process is None or not await loops.wait(process.ended, _END_SECONDS):
            return ""
        return f"the adapter's process ended: {process.told}"

    async def late(self) -> None:
        """It may stand still as a whole."""
        if self._process is not None:
            await self._host.suspect(self._process)


def way_to(adapter: Subscription, *, targets: Targets, tls: Tls | None, host: AdapterHost) -> Way:
    """The way to an adapter at `host:port` or `python:NAME`."""
    name = adapter.target.removeprefix(PYTHON)
    # A port begins with a digit, and a name never: `python:8080` is a machine of this name.
    if name != adapter.target and not name.isdigit():
        return ProcessWay(name, host)
    return NetworkWay(adapter, targets, tls)
