"""Who should own what: everybody says the same, and a change moves only what it must."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from deskwire_common.ownership import share, wanted_owner

NAMES = st.sets(st.text(min_size=1, max_size=12), min_size=1, max_size=8)
SLOTS = st.sets(st.integers(min_value=0, max_value=200), max_size=40)
KINDS = st.sampled_from(["partition", "outbox"])


@given(kind=KINDS, slots=SLOTS, names=NAMES)
def test_every_slot_has_exactly_one_wanted_owner(
    kind: str, slots: set[int], names: set[str]
) -> None:
    shares = [share(kind, slots, names, name) for name in names]
    assert Counter(slot for each in shares for slot in each) == Counter(slots)


@given(kind=KINDS, slots=SLOTS, names=NAMES)
def test_the_order_in_which_members_are_seen_does_not_matter(
    kind: str, slots: set[int], names: set[str]
) -> None:
    for slot in slots:
        assert wanted_owner(kind, slot, sorted(names)) == wanted_owner(
            kind, slot, sorted(names, reverse=True)
        )


@given(kind=KINDS, slots=SLOTS, names=NAMES, more=st.text(min_size=1, max_size=12))
def test_a_new_member_gets_slots_and_nobody_else_does(
    kind: str, slots: set[int], names: set[str], more: str
) -> None:
    for slot in slots:
        before = wanted_owner(kind, slot, names)
        assert wanted_owner(kind, slot, names | {more}) in {before, more}


@given(kind=KINDS, slots=SLOTS, names=NAMES, data=st.data())
def test_of_a_member_that_goes_only_its_own_slots_move(
    kind: str, slots: set[int], names: set[str], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted(names)))
    for slot in slots:
        before = wanted_owner(kind, slot, names)
        after = wanted_owner(kind, slot, names - {gone})
        assert (after == before) is (before != gone)


def test_nobody_owns_anything_when_nobody_lives() -> None:
    assert wanted_owner("partition", 3, []) is None
    assert share("partition", range(16), [], "chat-0") == set()
    assert share("partition", range(16), ["chat-0"], "chat-1") == set()


def test_many_slots_are_spread_about_evenly() -> None:
    names = [f"chat-{number}" for number in range(4)]
    shares = [len(share("partition", range(4_000), names, name)) for name in names]
    assert all(900 < each < 1_100 for each in shares), shares
