"""Columns' values in events, as text: what a database holds is what stands on the topic."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from deskwire_cdc.domain.changes import (
    Change,
    NumberedChange,
    Operation,
    change_from_json,
    change_to_json,
)
from deskwire_cdc.domain.sources import Source, State
from deskwire_cdc.events import row_changed
from deskwire_cdc.sources.values import render
from deskwire_common import events
from deskwire_common.clock import SystemClock
from deskwire_common.ids import RandomIds

VALUES: list[tuple[Any, str]] = [
    (7, "7"),
    (2**53 + 1, "9007199254740993"),
    (2**63 - 1, "9223372036854775807"),
    (-(2**63), "-9223372036854775808"),
    (2**64 - 1, "18446744073709551615"),
    (7.0, "7"),
    (-0.0, "-0.0"),
    (0.1, "0.1"),
    (1e300, "1e+300"),
    (5e-324, "5e-324"),
    (float("inf"), '"Infinity"'),
    (Decimal("129.00"), '"129.00"'),
    (
        Decimal("12345678901234567890123456789012345.123456789"),
        '"12345678901234567890123456789012345.123456789"',
    ),
    (Decimal("1E+3"), '"1000"'),
    (b"\x00\xff", '"AP8="'),
    (None, "null"),
    (True, "true"),
    (dt.date(2026, 11, 23), '"2026-11-23"'),
]


def told(change: Change) -> str:
    source = Source(
        tenant_id="t",
        source_id="crm",
        incarnation=RandomIds().uuid7(),
        kind="mariadb",
        url="mariadb://localhost/crm",
        system_id="crm:main",
        tables=("customers",),
        customer_rule=None,
        snapshot=False,
        created_at=0,
        version=1,
        state=State.STREAMING,
    )
    numbered = NumberedChange(change, RandomIds().uuid7(), "t/crm/customers/7", 1, 1)
    event = row_changed(source, numbered, ids=RandomIds(), clock=SystemClock())
    return events.encode(event).decode()


@pytest.mark.parametrize(("value", "text"), VALUES)
def test_a_value_stands_on_the_topic_as_it_was(value: Any, text: str) -> None:
    row = {"a": render(value)}
    change = Change("customers", Operation.UPDATE, row, row, row, "1", 0, 0)
    data = f'"key":{{"a":{text}}},"before":{{"a":{text}}},"after":{{"a":{text}}},'
    assert data in told(change)
    # Rows of a snapshot wait in a table meanwhile.
    assert data in told(change_from_json(change_to_json(change)))


def test_columns_stand_in_the_order_of_their_names() -> None:
    row = {"b": 1, "a": 2, "ä": 3, "C": 4}
    change = Change("customers", Operation.INSERT, {"b": 1}, None, row, "1", 0, 0)
    assert '"after":{"C":4,"a":2,"b":1,"ä":3}' in told(change)
    assert '"after"' not in told(replace(change, operation=Operation.DELETE, after=None))
