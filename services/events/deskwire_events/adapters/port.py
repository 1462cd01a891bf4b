"""What the hub knows of an adapter, however it is called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from deskwire.adapters.v1 import system_adapter_service_pb2 as pb
from deskwire.common.v1 import error_reason_pb2
from deskwire_common import texts
from deskwire_common.errors import FailedPrecondition, Unavailable
from deskwire_common.logging import get_logger
from deskwire_events.domain import Adapter, Outcome

MAX_BATCH: Final = 100
"""Most events in one Push, and records between two commits of a place: so many may come again."""
NOT_THERE: Final = "no adapter answers there that this hub may call"
"""All that a tenant is told, whether a rule forbids the address, nothing answers, or what answers is no adapter."""
_MAX_TEXT: Final = 500


@dataclass(frozen=True, slots=True)
class Schema:
    """What an adapter says it can."""

    program: str
    event_types: tuple[str, ...]
    max_batch: int


@dataclass(frozen=True, slots=True)
class Result:
    """What an adapter says of one event; `retry_after` in seconds, None: the hub decides."""

    outcome: Outcome
    detail: str
    retry_after: float | None


class TooLarge(Unavailable):
    """A Push was refused for its size, here or there: the same one always will be."""


class AdapterAway(Unavailable):
    """Nothing at the target proved to be an adapter. `detail` is the operator's, never the tenant's."""

    def __init__(self, detail: str, *, retry_after: float | None = None) -> None:
        super().__init__(NOT_THERE, retry_after=retry_after)
        self.detail = detail


class AdapterPort(ABC):
    """One adapter, however it is called. A call that fails as a whole raises Unavailable."""

    @abstractmethod
    async def schema(self) -> Schema:
        """Connect, and ask what it can. Raises AdapterAway unless an adapter answers."""

    @abstractmethod
    async def authenticate(self) -> None:
        """Open a session."""

    @abstractmethod
    async def ready(self) -> Schema:
        """Schema after a lost connection, Auth where there is no session: then it can push."""

    @abstractmethod
    def forget_session(self) -> None:
        """The session is over."""

    @abstractmethod
    def forget(self) -> None:
        """The connection is lost: resolve its name and begin with Schema again."""

    @abstractmethod
    async def push(self, items: Sequence[pb.PushItem], traceparent: str) -> list[Result]:
        """Push; one result per item, in their order. Raises TooLarge, Unavailable."""

    @abstractmethod
    async def close(self) -> None:
        """End the connection."""


OpenAdapter: TypeAlias = Callable[[Adapter], AdapterPort]
"""The way to an adapter; connects only when it is used."""


async def introduce(adapter: AdapterPort) -> Schema:
    """Schema and Auth of an adapter that is being registered.

    Raises FailedPrecondition (ADAPTER_UNUSABLE): what it answered once it has proved to be an adapter, else one text.
    """
    try:
        schema = await adapter.schema()
        await adapter.authenticate()
    except Unavailable as error:
        if isinstance(error, AdapterAway):
            get_logger().warning("adapter_away", error=error.detail)
        raise FailedPrecondition(
            f"the adapter can't be used: {error.message}",
            reason=error_reason_pb2.ERROR_REASON_ADAPTER_UNUSABLE,
        ) from error
    return schema


def clean(text: str) -> str:
    """A text of others for our tables and logs: not long, and in one line."""
    return texts.in_one_line(text[:_MAX_TEXT])
