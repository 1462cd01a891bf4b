"""The member that should own each slot: rendezvous hashing with bounded loads. Pure: no clock, no I/O.

Each slot has a weight for each member (Thaler and Ravishankar, 1998), and the heaviest pairs are taken first, as long
as the member has room (after Mirrokni, Thorup and Zadimoghaddam, 2018). With n slots and m members each gets n // m of
them, and n % m members get one more. All processes that see the same members compute the same without talking to each
other. The price of even shares: a member that joins or leaves also moves some slots between others, of 16 slots one or
two beside those that must move.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeVar

IdT = TypeVar("IdT", int, str)


def spread(kind: str, slots: Iterable[IdT], names: Iterable[str]) -> dict[IdT, str]:
    """Return the member of `names` that should own each slot; {} without members."""
    wanted, members = set(slots), set(names)
    if not members:
        return {}
    least, more = divmod(len(wanted), len(members))
    room = dict.fromkeys(members, least)
    pairs = [
        (_weight(kind, slot, name), str(slot), name, slot) for slot in wanted for name in members
    ]
    owners: dict[IdT, str] = {}
    for _, _, name, slot in sorted(pairs, reverse=True):
        if slot in owners or room[name] < 0 or (room[name] == 0 and not more):
            continue
        if room[name] == 0:
            more -= 1
        room[name] -= 1
        owners[slot] = name
    return owners


def share(kind: str, slots: Iterable[IdT], names: Iterable[str], name: str) -> set[IdT]:
    """Return the slots that `name` should own when `names` live."""
    return {slot for slot, owner in spread(kind, slots, names).items() if owner == name}


def _weight(kind: str, slot: int | str, name: str) -> bytes:
    return hashlib.blake2b(f"{kind}\0{slot}\0{name}".encode(), digest_size=8).digest()
