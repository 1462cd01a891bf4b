"""Adapters that do what no adapter should, for tests. They stand on nothing but the public library."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

from deskwire_adapter import (
    DELIVERED,
    DUPLICATE,
    AdapterBase,
    CredentialsRefused,
    Incoming,
    Login,
    Result,
    Session,
)


class Trial(AdapterBase):
    """Writes the ids of events into the file `log` of its configuration, and does what their data say first.

    `do`: `die`, `hang`, `stop` (all threads stand still), `eat` (memory), `flood` (the log), `shout` (a huge answer).
    """

    program = "trial/1"
    config_schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {"log": {"type": "string", "minLength": 1}, "level": {"type": "integer"}},
        "required": ["log"],
        "additionalProperties": False,
    }

    def auth(self, login: Login) -> Session:
        if login.credentials.get("password", "open") not in {"open", "sesame-sesame"}:
            raise CredentialsRefused(f"the password {login.credentials['password']} is wrong")
        return Session(login)

    def push_one(self, session: Session, event: Incoming) -> Result:
        what = event.data.get("do", "")
        log = Path(session.login.config["log"])
        seen = log.read_text().split() if log.exists() else []
        with log.open("a") as file:
            file.write(f"{event.event_id}\n")
        if what == "die":
            os.kill(os.getpid(), 9)
        if what == "hang":
            time.sleep(3600)
        if what == "stop":
            os.kill(os.getpid(), 19)
        if what == "eat":
            hold = [bytearray(16 << 20) for _ in range(10_000)]
            return Result(DELIVERED.outcome, str(len(hold)))
        if what == "flood":
            for _ in range(20_000):
                sys.stdout.write("x" * 200 + "\n")
        if what == "shout":
            return Result(DELIVERED.outcome, "x" * (6 << 20))
        return DUPLICATE if event.event_id in seen else DELIVERED

    def check(self, session: Session) -> str:
        return (
            "the log has no folder" if not Path(session.login.config["log"]).parent.is_dir() else ""
        )


class Broken:
    """No adapter."""


def missing() -> None:
    """An entry point that fails."""
    ctypes.CDLL("libthatisnotthere.so")
