"""Ownership: one process of a service owns a slot at a time, and an owner that was replaced can't write any more.

A slot is whatever only one process may work on: a partition, the outbox, an adapter, a source. Nothing relies on a
session lock, which the database keeps for hours when a node loses power: owner.py explains how dead processes are
replaced.

    owner = Owner(db, clock, ids.uuid7(), lease_seconds=settings.lease_seconds)
    owner.employ("outbox", relay.work)
    …
    await runtime.serve(…)
    await join(runtime, owner)
"""

from __future__ import annotations

import hashlib
import socket
from typing import TYPE_CHECKING, Any, Final

from deskwire_common.ownership.hashing import share, spread
from deskwire_common.ownership.members import Member, members_table
from deskwire_common.ownership.owner import LEASE_SECONDS, Owner
from deskwire_common.ownership.shares import Duties, Holdings
from deskwire_common.ownership.slots import Slot, SlotRows, TermOver, fence, slots_table
from deskwire_common.ownership.workers import Held, Work

if TYPE_CHECKING:
    from deskwire_common.lifecycle import Runtime

__all__ = [
    "LEASE_SECONDS",
    "Duties",
    "Held",
    "Holdings",
    "Member",
    "Owner",
    "Slot",
    "SlotRows",
    "TermOver",
    "Work",
    "fence",
    "join",
    "member_name",
    "members_table",
    "share",
    "slots_table",
    "spread",
]

_MAX_NAME: Final = 128


def member_name(port: int) -> str:
    """The name of a process that is given none: its host and the port on which it listens.

    No other living process of the host has it. After a kill -9 the next life of the process has it, and takes over at
    once.
    """
    host = socket.gethostname()
    if len(host) > _MAX_NAME - 6:
        host = hashlib.sha256(host.encode()).hexdigest()
    return f"{host}:{port}"


async def join(runtime: Runtime[Any], owner: Owner, address: str = "") -> None:
    """Make a process that already serves a member until it drains; others reach it at `address`. Raises Unavailable."""
    await owner.start(member_name(runtime.port), address or runtime.settings.grpc_listen)
    runtime.spawn("ownership", owner.run)
    runtime.on_drain(owner.leave)
