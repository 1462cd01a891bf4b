"""Loopback ports for tests; each goes to only one process of the machine, however many test runs there are.

A process claims blocks of a hundred ports, below those that the kernel uses for outgoing connections. The claim is a
socket on the block's last port: no other process can have it, and it ends with the process.
"""

from __future__ import annotations

import atexit
import random
import socket
from collections.abc import Iterator
from typing import Final

from deskwire_cli.machine.ports import HOST, is_free

_BLOCK: Final = 100
_BLOCKS: Final = range(10_000, 32_000, _BLOCK)


def free_base() -> int:
    """Return a port base for `deskwire up`: it and the 98 ports after it belong to this process until its end."""
    for base in random.sample(_BLOCKS, len(_BLOCKS)):
        claim = socket.socket()
        try:
            claim.bind((HOST, base + _BLOCK - 1))
        except OSError:
            claim.close()
            continue
        if all(is_free(port) for port in range(base, base + _BLOCK - 1)):
            atexit.register(claim.close)
            return base
        claim.close()
    raise AssertionError("no free ports")


def _ports() -> Iterator[int]:
    while True:
        base = free_base()
        yield from filter(is_free, range(base, base + _BLOCK - 1))


_free: Final = _ports()


def free_port() -> int:
    """Return a port on which nothing listens, a new one each time."""
    return next(_free)
