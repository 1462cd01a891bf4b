"""The ports of one machine's suite: a base, and a fixed distance from it for each part."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Mapping
from typing import Final

from deskwire_cli.machine.problem import Problem

BASE: Final = 7400
HOST: Final = "127.0.0.1"
CHAT_SHARDS: Final = 8
"""The most chat processes that one machine runs."""
LAYOUT: Final[Mapping[str, int]] = {
    "websocket": 0,
    "gateway": 1,
    "chat": 2,
    "tickets": 3,
    "events": 4,
    "cdc": 5,
    "chat-files": 6,
    "crm": 10,
    "gateway-metrics": 21,
    "chat-metrics": 22,
    "tickets-metrics": 23,
    "events-metrics": 24,
    "cdc-metrics": 25,
    **{f"chat-{number}": 30 + number for number in range(1, CHAT_SHARDS)},
    **{f"chat-{number}-metrics": 40 + number for number in range(1, CHAT_SHARDS)},
    **{f"chat-{number}-files": 50 + number for number in range(1, CHAT_SHARDS)},
    "valkey": 79,
    "kafka": 92,
    "kafka-controller": 93,
}
"""Distances from the base. `gateway` is the gRPC side; `<name>-metrics` serves Prometheus over HTTP, `<name>-files`
attachments; `chat-1` is the second chat process."""
_HIGHEST: Final = 65535 - max(LAYOUT.values())


class Ports:
    """The addresses of a suite with a given base. Raises Problem for a base that can't be used."""

    def __init__(self, base: int = BASE) -> None:
        if not 1024 <= base <= _HIGHEST:
            raise Problem(f"--port-base {base}: choose one from 1024 to {_HIGHEST}")
        self.base = base

    def port(self, name: str) -> int:
        """The port of one part, such as `chat` or `chat-metrics`."""
        return self.base + LAYOUT[name]

    def address(self, name: str) -> str:
        """host:port of one part."""
        return f"{HOST}:{self.port(name)}"

    def require_free(self, names: Iterable[str]) -> None:
        """Raise Problem, one line, unless all of these ports can be listened on now."""
        taken = [f"{self.port(name)} ({name})" for name in names if not is_free(self.port(name))]
        if taken:
            ports = "port" if len(taken) == 1 else "ports"
            raise Problem(
                f"{ports} {', '.join(taken)} {'is' if len(taken) == 1 else 'are'} taken: stop what listens there, "
                "or choose other ports with --port-base N"
            )


def is_free(port: int) -> bool:
    """Whether a server could listen on the loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                return False
            raise
    return True


def answers(address: str, timeout: float = 1.0) -> bool:
    """Whether something accepts connections at host:port. Blocks for at most `timeout` seconds."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout):
            return True
    except OSError:
        return False
