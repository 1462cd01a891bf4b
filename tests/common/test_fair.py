"""Fair queues and shared room: who floods waits behind themselves, and order is kept."""

from __future__ import annotations

from collections import defaultdict, deque

from hypothesis import given
from hypothesis import strategies as st

from deskwire_common.fair import FairQueue, Shares


def queue(*, few: int = 10, quantum: int = 10) -> FairQueue[tuple[str, str, int]]:
    return FairQueue(few=few, quantum=quantum)


def test_what_is_little_leaves_as_it_came() -> None:
    q = queue()
    for number in range(10):
        q.put((f"t{number % 3}", "", number), 1, f"t{number % 3}")
    assert [item[2] for item in q.take(100, 100)] == list(range(10))
    assert not q
    assert (len(q), q.size) == (0, 0)


def test_one_item_of_another_tenant_doesnt_wait_behind_a_flood() -> None:
    q = queue()
    for number in range(10_000):
        q.put(("flood", "", number), 1, "flood")
    q.put(("other", "", 0), 1, "other")
    assert "other" in {item[0] for item in q.take(20, 1_000)}


def test_one_item_of_another_line_doesnt_wait_behind_a_flood_of_its_tenant() -> None:
    q = queue()
    for number in range(10_000):
        q.put(("t", "flood", number), 1, "t", "flood")
    q.put(("t", "other", 0), 1, "t", "other")
    assert "other" in {item[1] for item in q.take(20, 1_000)}


def test_large_items_dont_buy_a_larger_share() -> None:
    q = queue(few=0, quantum=100)
    for number in range(1_000):
        q.put(("large", "", number), 90, "large")
        q.put(("small", "", number), 1, "small")
    sizes: dict[str, int] = defaultdict(int)
    for item in q.take(10_000, 1_900):
        sizes[item[0]] += 90 if item[0] == "large" else 1
    # One quantum each before anybody has a second one, and what is owed for a large item.
    assert abs(sizes["large"] - sizes["small"]) <= 200


def test_an_item_larger_than_all_quanta_leaves_and_is_paid_for() -> None:
    q = queue(few=0, quantum=1)
    q.put(("huge", "", 0), 1_000_000, "huge")
    q.put(("huge", "", 1), 1, "huge")
    q.put(("small", "", 0), 1, "small")
    assert [item[0] for item in q.take(10, 10_000_000)] == ["huge", "small", "huge"]


def test_it_stops_before_what_has_to_be_alone() -> None:
    q = queue(few=100)
    for number in range(5):
        q.put(("t", "", number), 1, "t")
    assert [item[2] for item in q.take(10, 10, lambda item: item[2] == 3)] == [0, 1, 2]
    assert q.first()[2] == 3
    assert q.pop()[2] == 3
    assert len(q) == 1
    q.clear()
    assert not q
    assert q.take(10, 10) == []


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(1, 50)),
            st.integers(1, 8),
        )
    ),
    st.integers(0, 60),
)
def test_nothing_is_lost_and_the_order_of_each_line_is_kept(
    steps: list[tuple[str, str, int] | int], few: int
) -> None:
    q: FairQueue[tuple[str, str, int]] = FairQueue(few=few, quantum=7)
    expected: dict[tuple[str, str], deque[int]] = defaultdict(deque)
    sizes: dict[int, int] = {}

    def check(taken: list[tuple[str, str, int]]) -> None:
        for tenant, line, number in taken:
            assert expected[tenant, line].popleft() == number
            del sizes[number]
        assert (len(q), q.size) == (len(sizes), sum(sizes.values()))

    for number, step in enumerate(steps):
        if isinstance(step, int):
            check(q.take(step, 100))
        else:
            tenant, line, size = step
            q.put((tenant, line, number), size, tenant, line)
            expected[tenant, line].append(number)
            sizes[number] = size
    check(q.take(1_000, 1_000_000))
    assert not sizes


def test_one_may_have_all_the_room_and_others_still_find_some() -> None:
    room = Shares(100)
    for _ in range(100):
        assert not room.is_full("flood")
        room.take("flood")
    assert room.is_full("flood")
    # Half of the room is another one's share.
    for _ in range(50):
        assert not room.is_full("other")
        room.take("other")
    assert room.is_full("other")
    assert room.is_full("flood")
    room.give_back("flood", 51)
    assert not room.is_full("flood")


def test_never_more_than_twice_the_room_is_taken() -> None:
    room = Shares(100)
    for tenant in range(1_000):
        while not room.is_full(tenant):
            room.take(tenant)
    assert room.taken == 200
    assert room.is_full("a new one")
