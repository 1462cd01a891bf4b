"""What the engine knows of a sink that events are pushed to, whatever kind it is.

A kind of sink is one module beside this one: a class with `ready`, `deliver` and `close`, and a line in the table of
`app`. The engine does the rest: order per key, batches, retries, dead letters, places. A sink keeps nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from deskwire.events.v1.event_pb2 import Event
from deskwire_common import texts
from deskwire_common.errors import Unavailable
from deskwire_common.pagination import ANSWER_BYTES
from deskwire_common.sealing import Sealer
from deskwire_events.domain import Result, Subscription, owner_of_secrets
from deskwire_events.spine import Carried

MAX_BATCH: Final = 100
"""Most events in one batch."""
_MAX_TEXT: Final = 500


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One event as it goes out. `attempt` is 1 for the first time, `traceparent` the W3C one of this delivery."""

    carried: Carried
    attempt: int
    traceparent: str

    @property
    def event_id(self) -> str:
        """Stable: the same event has it again."""
        return self.carried.event_id.decode()

    @property
    def event(self) -> Event:
        """The envelope."""
        return self.carried.event

    @property
    def json(self) -> bytes:
        """Its JSON form, in UTF-8."""
        return self.carried.json


class Away(Unavailable):
    """The target doesn't answer, or isn't what it should be: no event is to blame, and all wait for it.

    `detail` is the operator's, never the tenant's; `message` is shown.
    """

    def __init__(self, message: str, *, detail: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.detail = detail


class Faulty(Unavailable):
    """The target lives, and failed for this batch: perhaps one event is to blame. The engine finds out which."""


class TooLarge(Unavailable):
    """The batch was refused for its size, here or there: the same one always will be."""


class Sink(ABC):
    """Where the events of one subscription go. The engine makes one call at a time, unless it has `parallel` ones."""

    parallel: int = 1
    """Calls of `deliver` at a time; several have one event each, and none waits for another's."""

    max_batch: int = MAX_BATCH
    """Most events in a batch; read again after each `ready`."""
    max_bytes: int = ANSWER_BYTES
    """Most bytes of a batch, as `measure` counts them; one event may be larger."""
    max_event: int = 3 << 20
    """Most bytes of one event: a larger one is a dead letter."""

    def measure(self, carried: Carried) -> int:
        """Bytes that an event has when it is sent. Raises InvalidArgument for a record that is no event."""
        return len(carried.json)

    @abstractmethod
    async def ready(self) -> None:
        """Connect and sign in where that is needed; called before every batch, so it returns at once when all is well.

        Raises Away, and Faulty.
        """

    @abstractmethod
    async def deliver(self, batch: Sequence[Outgoing]) -> Sequence[Result]:
        """Deliver events of different keys; one result for each, in their order.

        Raises Away, Faulty and TooLarge for the batch as a whole. It may have been applied all the same: the events
        come again, with the same event_id.
        """

    @abstractmethod
    async def close(self) -> None:
        """End the connection."""


OpenSink: TypeAlias = Callable[[Subscription], Sink]
"""Makes the sink of a subscription; it connects only when it is used."""


def opened(subscription: Subscription, sealer: Sealer) -> dict[str, str]:
    """The secrets of a subscription, by name. Raises SealBroken."""
    about = owner_of_secrets(subscription.tenant, subscription.subscription_id)
    return {name: sealer.open(sealed, about) for name, sealed in subscription.secrets.items()}


def clean(text: str) -> str:
    """A text of others for our tables and logs: not long, and in one line."""
    return texts.in_one_line(text[:_MAX_TEXT])
