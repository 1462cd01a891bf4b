"""Who should own what: everybody says the same, shares are even, and a change moves little more than it must."""

from __future__ import annotations

import hashlib
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from deskwire_common.ownership import share, spread

NAMES = st.sets(st.text(min_size=1, max_size=12), min_size=1, max_size=8)
SLOTS = st.sets(st.integers(min_value=0, max_value=200), max_size=40)
KINDS = st.sampled_from(["partition", "outbox"])


def weight(kind: str, slot: int, name: str) -> bytes:
    return hashlib.blake2b(f"{kind}\0{slot}\0{name}".encode(), digest_size=8).digest()


def moved(before: dict[int, str], after: dict[int, str]) -> int:
    return sum(after[slot] != owner for slot, owner in before.items())


@given(kind=KINDS, slots=SLOTS, names=NAMES)
def test_every_slot_has_exactly_one_owner_and_the_shares_are_even(
    kind: str, slots: set[int], names: set[str]
) -> None:
    shares = {name: share(kind, slots, names, name) for name in names}
    assert Counter(slot for each in shares.values() for slot in each) == Counter(slots)
    least, more = divmod(len(slots), len(names))
    loads = sorted(len(each) for each in shares.values())
    assert loads == [least] * (len(names) - more) + [least + 1] * more


@given(kind=KINDS, slots=SLOTS, names=NAMES)
def test_the_order_in_which_members_and_slots_are_seen_does_not_matter(
    kind: str, slots: set[int], names: set[str]
) -> None:
    forth = spread(kind, sorted(slots), sorted(names))
    back = spread(kind, sorted(slots, reverse=True), sorted(names, reverse=True))
    assert forth == back


@given(kind=KINDS, slots=SLOTS, names=NAMES)
def test_a_slot_is_only_with_a_lighter_member_when_the_heavier_one_is_full_of_heavier_slots(
    kind: str, slots: set[int], names: set[str]
) -> None:
    """That is why a change moves little: nothing else than room keeps a slot from its heaviest member."""
    owners = spread(kind, slots, names)
    for slot, owner in owners.items():
        for name in names:
            if weight(kind, slot, name) > weight(kind, slot, owner):
                theirs = [each for each in owners if owners[each] == name]
                assert len(theirs) >= len(slots) // len(names)
                assert all(weight(kind, each, name) > weight(kind, slot, name) for each in theirs)


@given(kind=KINDS, slot=st.integers(), names=NAMES, more=st.text(min_size=1, max_size=12))
def test_a_kind_with_one_slot_moves_only_to_a_new_member(
    kind: str, slot: int, names: set[str], more: str
) -> None:
    before = spread(kind, [slot], names)[slot]
    assert spread(kind, [slot], names | {more})[slot] in {before, more}


def test_few_slots_move_when_a_member_comes_or_goes() -> None:
    """Of 16 partitions at most 2 more than must, taken over many groups of members; all of them are the worst case."""
    for many in range(1, 16):
        must, moves = 16 // (many + 1), 0
        for group in range(100):
            names = [f"chat-{group}-{number}" for number in range(many + 1)]
            moves += moved(
                spread("partition", range(16), names[:-1]), spread("partition", range(16), names)
            )
        assert moves / 100 <= must + 2.5, (many, moves / 100)


def test_each_of_eight_processes_has_two_of_sixteen_partitions() -> None:
    names = [f"chat-{number}" for number in range(8)]
    assert [len(share("partition", range(16), names, name)) for name in names] == [2] * 8


def test_nobody_owns_anything_when_nobody_lives() -> None:
    assert spread("partition", range(16), []) == {}
    assert share("partition", range(16), ["chat-0"], "chat-1") == set()
