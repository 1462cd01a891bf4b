"""A line that was refused lets nothing overtake."""

from __future__ import annotations

import pytest

from deskwire_common.errors import ResourceExhausted
from deskwire_common.lines import HeldLines, OwnLines


def test_a_held_line_waits_for_its_first_refusal() -> None:
    lines = HeldLines[str]()
    assert not lines
    lines.hold("a", "1")
    lines.hold("a", "2")  # refused behind the first: it may not go before it
    assert lines
    assert list(lines) == ["a"]
    assert lines.first("a") == "1"
    with pytest.raises(ResourceExhausted, match="send '1' again first") as refused:
        lines.check("a", "2")
    assert (refused.value.reason_name, refused.value.temporary) == ("LINE_HELD", True)
    assert refused.value.retry_after
    lines.check("b", "2")
    lines.check("a", "1")
    assert lines.first("a") == "1"  # until it was taken
    lines.release("a")
    lines.release("a")
    lines.check("a", "2")
    assert not lines


def test_somebody_who_holds_line_after_line_is_bounded() -> None:
    held, own = HeldLines[int](3), OwnLines[int](3)
    forgotten: list[int] = []
    for line in range(5):
        held.hold(line, "m")
        forgotten += own.add(line)
    assert list(held) == list(own) == [2, 3, 4]
    assert forgotten == [0, 1]
    own.discard(3)
    assert own.add(5) == []
