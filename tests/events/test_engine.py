"""The engine's pure parts under any schedule: nothing lost, one of a key in flight, in order, crashes or not."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from deskwire_events.engine import Backlog, Bucket, Item, Throttle, Window

PLACE = ("t", 0)
KEYS = [b"a", b"b", b"c"]


@given(st.permutations(range(30)), st.integers(0, 30))
def test_the_watermark_is_the_lowest_unfinished_offset(order: list[int], stop: int) -> None:
    window = Window(0)
    for offset in range(30):
        window.take(offset)
    for offset in order[:stop]:
        window.finish(offset)
        window.finish(offset)
    assert window.watermark == min(order[stop:], default=30)


def test_a_window_passes_over_what_nobody_wants() -> None:
    window = Window(5)
    window.skip_to(9)
    assert window.watermark == 9
    window.take(9)
    window.skip_to(20)
    assert (window.watermark, window.next) == (9, 20)
    window.finish(9)
    assert window.watermark == 20


class Engine(RuleBasedStateMachine):
    """A backlog, the rows that its ledger wrote, and a target; a crash begins again from the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.published: list[bytes] = []
        # Rows: the place, and parked events by offset.
        self.place = 0
        self.rows: dict[int, bytes] = {}
        self.firsts: dict[bytes, list[int]] = defaultdict(list)
        self.done: set[int] = set()
        self.flying: list[Item] = []
        self.start()

    def start(self) -> None:
        known = {PLACE: {offset for offset in self.rows if offset >= self.place}}
        self.backlog = Backlog({PLACE: self.place}, max_count=50, max_bytes=1 << 20, known=known)
        self.flying = []
        counts: dict[bytes, int] = defaultdict(int)
        for key in self.rows.values():
            counts[key] += 1
        self.backlog.set_stored([(("t", key), count, self.now) for key, count in counts.items()])

    @rule(key=st.sampled_from(KEYS))
    def publish(self, key: bytes) -> None:
        self.published.append(key)

    @rule()
    def read(self) -> None:
        while self.backlog.has_room:
            offset = self.backlog.next_of(PLACE)
            assert offset is not None
            if offset >= len(self.published):
                return
            key = self.published[offset]
            self.backlog.take(Item("t", 0, offset, key, size=1, body=offset))

    @rule(count=st.integers(1, 4))
    def send(self, count: int) -> None:
        self.backlog.lanes.wake(self.now)
        for item in self.backlog.send(count, 1000):
            key = item.key[1]
            assert key not in {other.key[1] for other in self.flying}, "one of a key in flight"
            if item.offset not in self.firsts[key]:
                self.firsts[key].append(item.offset)
            self.flying.append(item)

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), outcome=st.sampled_from(["finish", "retry", "back"]))
    def answer(self, data: Any, outcome: str) -> None:
        item = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        if outcome == "finish":
            self.done.add(item.offset)
            self.backlog.finish(item)
        elif outcome == "retry":
            due = self.now + data.draw(st.sampled_from([0.1, 5.0]))
            self.backlog.retry(item, due=due, now=self.now, detail="busy")
        else:
            self.backlog.put_back(item)

    @rule(seconds=st.sampled_from([0.1, 2.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(between=st.booleans(), fails=st.booleans(), data=st.data())
    def tick(self, between: bool, fails: bool, data: Any) -> None:
        saves = self.backlog.collect(self.now, {}, idle=False)
        if between and self.flying:
            self.answer(data, "finish")
        if fails:
            self.backlog.unsaved(saves)
            return
        for item in saves.park:
            self.rows[item.offset] = item.key[1]
        for item in saves.delete:
            self.rows.pop(item.offset, None)
        self.place = saves.places.get(PLACE, self.place)
        self.backlog.saved(saves)

    @rule()
    def load(self) -> None:
        self.backlog.lanes.wake(self.now)
        for key in self.backlog.lanes.lacking(2):
            rows = sorted(offset for offset, name in self.rows.items() if name == key[1])
            items = [Item("t", 0, offset, key[1], size=1, body=offset) for offset in rows[:3]]
            self.backlog.load(key, items)

    @rule()
    def crash(self) -> None:
        self.start()

    @invariant()
    def nothing_is_lost(self) -> None:
        for offset in range(self.place):
            assert offset in self.done or offset in self.rows, offset

    @invariant()
    def the_first_time_is_in_order(self) -> None:
        for key, offsets in self.firsts.items():
            wanted = [offset for offset, name in enumerate(self.published) if name == key]
            assert offsets == wanted[: len(offsets)]

    def teardown(self) -> None:
        """With a target that takes everything, everything ends."""
        for item in self.flying:
            self.backlog.put_back(item)
        self.flying = []
        for _ in range(200):
            self.now += 100.0
            self.read()
            self.load()
            self.send(4)
            for item in self.flying:
                self.done.add(item.offset)
                self.backlog.finish(item)
            self.flying = []
            saves = self.backlog.collect(self.now, {}, idle=True)
            for item in saves.delete:
                self.rows.pop(item.offset, None)
            for item in saves.park:
                self.rows[item.offset] = item.key[1]
            self.place = saves.places.get(PLACE, self.place)
            self.backlog.saved(saves)
        assert self.done == set(range(len(self.published)))
        assert not self.rows
        assert self.place == len(self.published)
        assert (self.backlog.lanes.count, self.backlog.lanes.bytes, len(self.backlog.lanes)) == (
            0,
            0,
            0,
        )
        assert self.backlog.lanes.stored == 0


TestEngine = Engine.TestCase
TestEngine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_retry_parks_its_key_and_no_other() -> None:
    backlog = Backlog({PLACE: 0}, max_count=9, max_bytes=1 << 20)
    for offset, key in enumerate([b"a", b"a", b"b", b"b"]):
        backlog.take(Item("t", 0, offset, key, size=1, body=None))
    first, other = backlog.send(9, 9)
    assert (first.offset, other.offset) == (0, 2)
    backlog.retry(first, due=60.0, now=0.0, detail="busy")
    backlog.finish(other)
    assert [item.offset for item in backlog.send(9, 9)] == [3]
    backlog.lanes.wake(59.0)
    assert not backlog.lanes.ready
    backlog.lanes.wake(60.0)
    assert [item.offset for item in backlog.send(9, 9)] == [0]


def test_a_batch_is_bounded_in_bytes_and_has_one_at_least() -> None:
    backlog = Backlog({PLACE: 0}, max_count=9, max_bytes=1 << 20)
    for offset, key in enumerate(KEYS):
        backlog.take(Item("t", 0, offset, key, size=100, body=None))
    assert len(backlog.send(9, 10)) == 1
    assert len(backlog.send(9, 200)) == 2


def throttle() -> Throttle:
    return Throttle(100, first=0.2, longest=30.0, uniform=lambda low, high: high)


def test_a_failing_batch_is_halved_until_the_one_that_fails_is_found() -> None:
    guard = throttle()
    sizes = []
    while not guard.failed(0.0, guard.limit):
        sizes.append(guard.limit)
    assert sizes == [50, 25, 12, 6, 3, 1]
    for _ in range(3):
        guard.worked()
    assert guard.limit == 8


def test_when_single_ones_fail_in_a_row_it_is_the_target() -> None:
    guard = throttle()
    assert [guard.failed(0.0, 1) for _ in range(6)] == [True, True, True, True, False, False]
    assert guard.open
    assert guard.until == 0.4
    guard.worked()
    assert not guard.open


@given(st.lists(st.floats(0, 2), max_size=60))
def test_a_bucket_never_gives_more_than_its_rate(waits: list[float]) -> None:
    bucket = Bucket(10.0, 5.0)
    now, spent = 0.0, 0
    for wait in waits:
        now += wait
        room = bucket.room(now)
        assert room is not None
        bucket.spend(room)
        spent += room
    assert spent <= 5 + 10.0 * now + 1e-6
