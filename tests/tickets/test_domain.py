"""The rules of tickets, under any sequence of attempts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from deskwire_common.errors import FailedPrecondition, VersionMismatch
from deskwire_tickets import domain
from deskwire_tickets.domain import Action, Actor, Change, TicketPriority, TicketState

START = 1_767_225_600_000_000
ALICE = Actor(role=2, subject="alice", name="Alice", origin="")


def created(now: int = START) -> Change:
    return domain.create(
        tenant="demo",
        ticket_id="t",
        number=1,
        subject="Parcel is late",
        description="",
        priority=TicketPriority.NORMAL,
        conversation_id="c",
        customer_id="k",
        by=ALICE,
        now=now,
    )


class TicketLife(RuleBasedStateMachine):
    """Attempts at any time, also with a clock that jumps back, with right and wrong versions."""

    def __init__(self) -> None:
        super().__init__()
        first = created()
        self.ticket = first.after
        self.entries = [first.entry]
        self.now = START
        self.solved = 0

    @rule(seconds=st.integers(-100, 100))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds * 1_000_000

    @rule(text=st.text(max_size=5), off=st.sampled_from([None, 0, 1, -1]))
    def solve(self, text: str, off: int | None) -> None:
        expected = 0 if off is None else self.ticket.version + off
        before = self.ticket
        try:
            change = domain.solve(
                before, resolution=text, expected_version=expected, by=ALICE, now=self.now
            )
        except VersionMismatch:
            assert expected not in {0, before.version}
        except FailedPrecondition:
            assert before.state is TicketState.SOLVED
        else:
            assert before.state is TicketState.OPEN
            self.solved += 1
            self.take(change)

    @rule(text=st.text(max_size=5), off=st.sampled_from([None, 0, 1, -1]))
    def reopen(self, text: str, off: int | None) -> None:
        expected = 0 if off is None else self.ticket.version + off
        before = self.ticket
        try:
            change = domain.reopen(
                before, reason=text, expected_version=expected, by=ALICE, now=self.now
            )
        except VersionMismatch:
            assert expected not in {0, before.version}
        except FailedPrecondition:
            assert before.state is TicketState.OPEN
        else:
            assert before.state is TicketState.SOLVED
            self.take(change)

    def take(self, change: Change) -> None:
        assert change.before is self.ticket
        self.ticket = change.after
        self.entries.append(change.entry)

    @invariant()
    def history_is_whole(self) -> None:
        assert [entry.version for entry in self.entries] == list(range(1, self.ticket.version + 1))
        times = [entry.time for entry in self.entries]
        assert times == sorted(times)
        assert times[-1] == self.ticket.update_time
        for one, two in zip(self.entries, self.entries[1:], strict=False):
            assert two.from_state is one.to_state
            assert two.from_state is not two.to_state
        assert self.entries[-1].to_state is self.ticket.state

    @invariant()
    def ticket_agrees_with_its_history(self) -> None:
        actions = [entry.action for entry in self.entries]
        assert self.ticket.reopen_count == actions.count(Action.REOPENED)
        assert self.solved == actions.count(Action.SOLVED)
        solved = self.ticket.state is TicketState.SOLVED
        assert (self.ticket.solve_time is not None) == solved
        assert solved or self.ticket.resolution == ""


TestTicketLife = TicketLife.TestCase


@given(st.sampled_from(list(TicketPriority)))
def test_a_new_ticket_is_open_and_its_makers(priority: TicketPriority) -> None:
    change = created()
    assert change.before is None
    assert change.after.state is TicketState.OPEN
    assert change.after.assignee_id == "alice"
    assert change.entry.from_state is None
    assert priority in TicketPriority


def test_the_version_is_checked_before_the_state() -> None:
    with pytest.raises(VersionMismatch) as caught:
        domain.reopen(created().after, reason="", expected_version=7, by=ALICE, now=START)
    assert caught.value.metadata == {"current_version": "1", "expected_version": "7"}
