"""Adapters in Python: derive from `AdapterBase`, write `push_one`, and `serve` it, or name it as an entry point.

    class Crm(AdapterBase):
        program = "my-crm/1.0"

        def push_one(self, session: Session, event: Incoming) -> Result:
            ...
            return DELIVERED

    serve(Crm(), "127.0.0.1:7500")

An entry point of the group `deskwire.adapters` is run by the hub itself, in a child process (docs/adapters.md).
"""

from __future__ import annotations

from deskwire_adapter.base import (
    AdapterBase,
    CredentialsRefused,
    Login,
    PushFailed,
    Session,
    SessionOver,
)
from deskwire_adapter.model import (
    DELIVERED,
    DUPLICATE,
    SKIPPED,
    Incoming,
    Outcome,
    Result,
    conflict,
    rate_limited,
    rejected,
    retry,
    unknown,
)
from deskwire_adapter.serving import serve, serving
from deskwire_adapter.tokens import Refreshed, Token

__all__ = [
    "DELIVERED",
    "DUPLICATE",
    "SKIPPED",
    "AdapterBase",
    "CredentialsRefused",
    "Incoming",
    "Login",
    "Outcome",
    "PushFailed",
    "Refreshed",
    "Result",
    "Session",
    "SessionOver",
    "Token",
    "conflict",
    "rate_limited",
    "rejected",
    "retry",
    "serve",
    "serving",
    "unknown",
]
