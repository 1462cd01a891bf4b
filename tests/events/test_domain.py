"""Cursors, topics and adapters, without I/O."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskwire_common import topics
from deskwire_common.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied
from deskwire_events import domain
from deskwire_events.domain import Adapter, AdapterState, Cursor, Delivery, Outcome

NOW = 1_767_225_600_000_000
PLACES = st.dictionaries(
    st.tuples(st.text(max_size=20), st.integers(0, 99)), st.integers(0, 2**63 - 1), max_size=30
)


@given(st.text(max_size=30), PLACES)
def test_a_cursor_comes_back(cluster: str, places: dict[tuple[str, int], int]) -> None:
    cursor = Cursor(cluster, places)
    assert domain.decode_cursor(domain.encode_cursor(cursor)) == cursor


@given(st.one_of(st.text(max_size=50), st.binary(max_size=50).map(lambda raw: f"1{raw.hex()}")))
def test_anything_else_is_no_cursor(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        domain.decode_cursor(text)
    assert caught.value.reason_name == "INVALID_CURSOR"


@pytest.mark.parametrize("place", [(0, 2**63), (0, 2**70), (0, -1), (2**31, 1), (-1, 1)])
def test_a_place_that_kafka_cannot_have_is_no_cursor(place: tuple[int, int]) -> None:
    partition, offset = place
    forged = domain.encode_cursor(Cursor("cluster", {("deskwire.tickets", partition): offset}))
    with pytest.raises(InvalidArgument) as caught:
        domain.decode_cursor(forged)
    assert caught.value.reason_name == "INVALID_CURSOR"


def test_a_cursor_of_all_topics_fits_into_a_status() -> None:
    places = {
        (topic.name, partition): 10**12 + partition
        for topic in topics.TOPICS.values()
        for partition in range(topic.partitions)
    }
    assert len(domain.encode_cursor(Cursor("MkU3OEVBNTcwNTJENDM2Qk", places))) < 1000


@pytest.mark.parametrize(
    ("cluster", "offset", "kept"),
    [("a", 5, True), ("a", 9, True), ("a", 4, False), ("a", 10, False), ("b", 7, False)],
)
def test_what_is_kept(cluster: str, offset: int, kept: bool) -> None:
    cursor = Cursor(cluster, {("t", 0): offset, ("unread", 3): 1})
    assert domain.is_kept(cursor, "a", {("t", 0): 5}, {("t", 0): 9}) is kept


def test_topics_follow_from_event_types() -> None:
    everything = domain.topics_of([])
    assert everything.changes
    assert set(everything.names) == {topic.name for topic in topics.fixed_topics()}
    assert domain.topics_of(["ticket_created", "invoice_paid"]) == domain.Selection(
        (topics.EXTERNAL.name, topics.TICKETS.name), changes=False
    )
    assert domain.topics_of(["row_changed"]) == domain.Selection((), changes=True)


def registered(**changes: object) -> Adapter:
    adapter = domain.register(
        None,
        tenant="demo",
        adapter_id="crm-main",
        system_id="crm:main",
        target="127.0.0.1:1",
        event_types=["a", "b"],
        accepts=["b", "c"],
        credentials={"password": "secret"},
        now=NOW,
    )
    return replace(adapter, **changes)  # type: ignore[arg-type]


def test_an_adapter_gets_what_both_sides_want() -> None:
    assert registered().wanted == {"b"}
    assert registered(accepts=()).wanted == {"a", "b"}
    assert registered(event_types=()).wanted == {"b", "c"}
    assert registered(event_types=(), accepts=()).wanted == frozenset()


def test_removing_and_registering_again() -> None:
    adapter = registered(delivered_count=7, state=AdapterState.STOPPED)
    with pytest.raises(PermissionDenied):
        domain.remove(adapter, "crm-main", "erp:main")
    gone = domain.remove(adapter, "crm-main", "crm:main")
    assert (gone.removed, gone.version, dict(gone.credentials)) == (True, 2, {})
    with pytest.raises(NotFound):
        domain.remove(gone, "crm-main", "")
    arguments = {
        "tenant": "demo",
        "adapter_id": "crm-main",
        "system_id": "crm:main",
        "target": "127.0.0.1:2",
        "event_types": [],
        "accepts": [],
        "credentials": {},
        "now": NOW,
    }
    with pytest.raises(AlreadyExists):
        domain.register(adapter, **arguments)  # type: ignore[arg-type]
    again = domain.register(gone, **arguments)  # type: ignore[arg-type]
    assert (again.version, again.registration, again.delivered_count) == (3, 3, 7)
    assert (again.state, again.group) == (AdapterState.ACTIVE, adapter.group)


@given(st.lists(st.sampled_from([Outcome.DELIVERED, Outcome.REJECTED, Outcome.SKIPPED])))
def test_many_dead_letters_in_a_row_stop_an_adapter(outcomes: list[Outcome]) -> None:
    ends = [Delivery("e", "t", outcome, "no", 1, NOW, "") for outcome in outcomes]
    after = domain.delivered(registered(), ends, limit=3)
    row = 0
    for outcome in reversed(outcomes):
        if outcome is not Outcome.REJECTED:
            break
        row += 1
    assert after.rejected_in_row == row
    assert (after.state is AdapterState.STOPPED) == (row >= 3)
    assert after.delivered_count + after.dead_letter_count == len(outcomes)


def test_unknown_outcomes_mean_try_again() -> None:
    assert domain.outcome_of(0) is Outcome.RETRY
    assert domain.outcome_of(99) is Outcome.RETRY
    assert not Outcome.AUTH_EXPIRED.final
