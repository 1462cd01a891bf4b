"""The member that should own each slot: rendezvous hashing (Thaler and Ravishankar, 1998). Pure: no clock, no I/O.

Each slot goes to the member with the greatest weight for it. All processes that see the same members compute the same
without talking to each other, and a member that joins or leaves moves only the slots that it gets or had. The price:
shares are as even as throws of a die, not exactly even.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from typing import TypeVar

IdT = TypeVar("IdT", int, str)


def wanted_owner(kind: str, slot: int | str, names: Iterable[str]) -> str | None:
    """Return the member that should own a slot; None without members."""
    return max(names, key=lambda name: (_weight(kind, slot, name), name), default=None)


def share(kind: str, slots: Iterable[IdT], names: Collection[str], name: str) -> set[IdT]:
    """Return the slots that `name` should own when `names` live."""
    return {slot for slot in slots if wanted_owner(kind, slot, names) == name}


def _weight(kind: str, slot: int | str, name: str) -> bytes:
    return hashlib.blake2b(f"{kind}\0{slot}\0{name}".encode(), digest_size=8).digest()
