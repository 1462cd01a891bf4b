"""The class to derive from. All methods may be plain functions, which run in threads, or coroutines."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, TypeAlias, TypeVar

from deskwire_adapter.model import Incoming, Result

T = TypeVar("T")
Maybe: TypeAlias = T | Awaitable[T]
"""The value, or a coroutine that returns it."""


class CredentialsRefused(Exception):
    """`auth` raises it: the credentials or the configuration are wrong. The message is shown to who registers."""


class SessionOver(Exception):
    """`push` raises it: the system wants a fresh sign-in. The hub calls `auth`, and pushes these events once more."""


class PushFailed(Exception):
    """`push_one` raises it, from however deep, instead of returning a result."""

    def __init__(self, result: Result) -> None:
        """`result` is what becomes of the event."""
        super().__init__(result.detail)
        self.result = result


@dataclass(frozen=True, slots=True)
class Login:
    """What the registration says: `config` keeps the adapter's `config_schema`, `credentials` are names and values.

    Its text has no credentials.
    """

    tenant_id: str
    config: Mapping[str, Any] = field(default_factory=dict)
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)


class Session:
    """What `auth` returns and `push` gets; derive from it to keep a connection. A registration may have several."""

    def __init__(self, login: Login, *, expires: datetime | None = None) -> None:
        """`expires` (with a time zone): when the hub is to sign in again; None: when `push` raises SessionOver."""
        self.login = login
        self.expires = expires

    def close(self) -> Maybe[None]:
        """End what it holds; called when nobody has used it for long, and at the end."""


class AdapterBase:
    """One kind of system. Nothing but `push_one` must be written."""

    program: ClassVar[str] = ""
    """Name and version of the adapter: `my-crm/1.0`."""
    event_types: ClassVar[Sequence[str]] = ()
    """Event types that it takes; none: all."""
    max_batch: ClassVar[int] = 100
    """Most events in one `push`; together they have 30 s."""
    idempotent: ClassVar[bool] = False
    """Whether the system knows an event_id again by itself."""
    config_schema: ClassVar[Mapping[str, Any] | None] = None
    """JSON Schema (2020-12) of `Login.config`; None: it takes no configuration. The hub checks it at registration."""

    def auth(self, login: Login) -> Maybe[Session]:
        """Sign in. Raises CredentialsRefused."""
        return Session(login)

    def push(self, session: Session, events: Sequence[Incoming]) -> Maybe[Sequence[Result]]:
        """Hand over events of different subjects: one result for each, in their order. Or write `push_one`.

        Raises SessionOver. What else it raises is the answer UNKNOWN, and counts against all of the events.
        """
        raise NotImplementedError

    def push_one(self, session: Session, event: Incoming) -> Maybe[Result]:
        """Hand over one event. Raises SessionOver and PushFailed; anything else is UNKNOWN, so it comes again."""
        raise NotImplementedError

    def check(self, session: Session) -> Maybe[str]:  # noqa: ARG002 - for who overrides it
        """Say what keeps the system from taking events, "" if nothing does. It changes nothing there."""
        return ""

    def close(self) -> Maybe[None]:
        """End what the adapter holds."""
