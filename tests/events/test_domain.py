"""Cursors, topics, filters, subscriptions and outcomes, without I/O."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskwire_common import topics
from deskwire_common.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied
from deskwire_events import domain
from deskwire_events.domain import Cursors, Limits, Outcome, Progress, State, Subscription

NOW = 1_767_225_600_000_000
PLACES = st.dictionaries(
    st.tuples(st.text(max_size=20), st.integers(0, 99)), st.integers(0, 2**63 - 1), max_size=30
)
CURSORS = Cursors(b"a secret", "cluster")


@given(PLACES)
def test_a_cursor_comes_back(places: dict[tuple[str, int], int]) -> None:
    topics_of_it = {topic for topic, _ in places}
    text = CURSORS.encode("t", places)
    cursor = CURSORS.decode(text, "t", topics_of_it)
    assert (cursor.places, cursor.ours) == (places, True)
    assert not CURSORS.decode(text, "t", ()).places
    assert not Cursors(b"a secret", "another").decode(text, "t", topics_of_it).ours


@given(st.one_of(st.text(max_size=50), st.binary(max_size=50).map(lambda raw: f"Ag{raw.hex()}")))
def test_anything_else_is_no_cursor(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        CURSORS.decode(text, "t", ())
    assert caught.value.reason_name == "INVALID_CURSOR"


@given(PLACES, st.integers(0, 10_000), st.integers(1, 255))
def test_a_cursor_with_one_other_byte_is_none(
    places: dict[tuple[str, int], int], at: int, flip: int
) -> None:
    text = CURSORS.encode("t", places)
    raw = bytearray(text.encode())
    raw[at % len(raw)] ^= flip
    changed = raw.decode("latin-1")
    try:
        found = CURSORS.decode(changed, "t", {topic for topic, _ in places}).places
    except InvalidArgument:
        return
    # Base64 without its filling has bits that mean nothing.
    assert found == places


def test_a_cursor_of_all_topics_fits_into_a_status() -> None:
    places = {
        (topic.name, partition): 10**12 + partition
        for topic in topics.TOPICS.values()
        for partition in range(topic.partitions)
    }
    assert len(CURSORS.encode("t", places)) < 800


def test_topics_follow_from_event_types() -> None:
    everything = domain.topics_of([])
    assert everything.changes
    assert set(everything.names) == {topic.name for topic in topics.fixed_topics()}
    assert domain.topics_of(["ticket_created", "invoice_paid"]) == domain.Selection(
        (topics.EXTERNAL.name, topics.TICKETS.name), changes=False
    )
    assert domain.topics_of(["row_changed"]) == domain.Selection((), changes=True)


ARGUMENTS = {
    "tenant": "demo",
    "adapter_id": "crm-main",
    "incarnation": "i",
    "system_id": "crm:main",
    "target": "127.0.0.1:1",
    "event_types": ["a", "b"],
    "accepts": ["b", "c"],
    "credentials": {"password": "secret"},
    "now": NOW,
}


def registered(before: Subscription | None = None, **changes: object) -> Subscription:
    return domain.register(before, **{**ARGUMENTS, **changes})  # type: ignore[arg-type]


def test_an_adapter_gets_what_both_sides_want() -> None:
    assert registered().event_types == {"b"}
    assert registered(accepts=()).event_types == {"a", "b"}
    assert registered(event_types=()).event_types == {"b", "c"}
    assert registered(event_types=(), accepts=()).event_types == frozenset()


def test_removing_and_registering_again() -> None:
    adapter = replace(registered(), state=State.STOPPED)
    with pytest.raises(PermissionDenied):
        domain.remove(adapter, "crm-main", "erp:main")
    gone = domain.remove(adapter, "crm-main", "crm:main")
    assert (gone.removed, gone.version, dict(gone.secrets)) == (True, 2, {})
    with pytest.raises(NotFound):
        domain.remove(gone, "crm-main", "")
    with pytest.raises(AlreadyExists):
        registered(adapter)
    again = registered(gone, incarnation="j")
    # It goes on in the places of the one before.
    assert (again.version, again.incarnation, again.slot) == (3, "i", adapter.slot)
    assert again.state is State.ACTIVE
    assert again.revision > gone.revision > adapter.revision


@given(st.lists(st.sampled_from([Outcome.DELIVERED, Outcome.REJECTED, Outcome.CONFLICT])))
def test_dead_letters_in_a_row_are_counted(outcomes: list[Outcome]) -> None:
    after = Progress()
    for outcome in outcomes:
        after = domain.after(after, [outcome], "no")
    assert domain.after(Progress(), outcomes, "no") == after
    row = 0
    for outcome in reversed(outcomes):
        if outcome.good:
            break
        row += 1
    assert after.rejected_in_row == row
    assert after.delivered + after.dead == len(outcomes)


def test_unknown_outcomes_mean_try_again() -> None:
    assert domain.outcome_of(0) is Outcome.RETRY
    assert domain.outcome_of(99) is Outcome.RETRY
    assert not Outcome.AUTH_EXPIRED.final


def test_tries_end_by_number_and_by_age() -> None:
    limits = Limits(refusals=3, age=60.0)
    assert not limits.is_over(2, 100.0, 159.0)
    assert limits.is_over(3, 100.0, 100.0)
    assert limits.is_over(1, 100.0, 160.0)
