"""Probes: whether a started process can be used."""

from __future__ import annotations

import grpc

from deskwire_cli.machine.ports import answers
from deskwire_cli.machine.process import Probe
from deskwire_common.probe import ask as ask_health


def serving(address: str) -> Probe:
    """Ready when grpc.health.v1 answers SERVING."""

    def ask() -> str:
        with grpc.insecure_channel(address) as channel:
            try:
                answer = ask_health(channel)
            except grpc.RpcError as error:
                return f"{address} doesn't answer ({error_text(error)})"
        return "" if answer.status == answer.SERVING else f"{address} is not serving yet"

    return ask


def listening(address: str) -> Probe:
    """Ready when it accepts connections."""
    return lambda: "" if answers(address) else f"no answer at {address}"


def error_text(error: grpc.RpcError) -> str:
    """The code and text of an error, if it has them."""
    code, details = getattr(error, "code", None), getattr(error, "details", None)
    return f"{code().name}: {details()}" if callable(code) and callable(details) else str(error)
