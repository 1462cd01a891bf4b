"""Rows that chat doesn't take, or not whole: noted with what is refused of them, and forgotten when that passes."""

from __future__ import annotations

from dataclasses import replace

from deskwire_cdc import store
from deskwire_cdc.domain.customers import CustomerCall, Refusal, missing_fields, without
from deskwire_cdc.domain.sources import Source
from deskwire_cdc.sinks.customers import Outcome
from deskwire_common.db import Database, UnitOfWork
from deskwire_common.migrations import migrate

NAME, BOTH = ("display_name",), ("display_name", "mobile")


def test_what_is_left_of_a_call() -> None:
    values = {"display_name": "a\nb", "email": "", "mobile": "+49"}
    call = CustomerCall("cdc:1", (("crm", "1"),), values, BOTH, 0)
    left = without(call, NAME)
    assert left is not None
    assert (left.request_id, left.mask) == ("cdc:1:without-display_name", ("mobile",))
    assert "display_name" not in left.values  # nothing may offer it once more
    assert without(left, ("mobile",)) is None
    assert without(call, ()) is None
    assert without(call, ("email",)) is None  # the same call again would never end


def test_blanks_are_nothing_that_a_customer_lacks() -> None:
    values = {"display_name": "Ana", "email": " \u00a0", "mobile": "+49"}
    call = CustomerCall("cdc:1", (("crm", "1"),), values, ("mobile",), 0)
    rest = missing_fields(call, {"display_name": "", "email": "", "mobile": "+49"})
    assert rest is not None
    assert rest.mask == ("display_name",)
    assert missing_fields(call, {"display_name": "Ana"}) is None


def test_the_last_word_on_a_row_counts() -> None:
    outcome = Outcome()
    outcome.refuse("r", NAME, "a line break")
    outcome.took("r", ["mobile"])
    assert outcome.refused == {"r": Refusal(NAME, "a line break")}
    outcome.refuse("r", ["mobile"], "an escape")
    assert outcome.refused["r"].fields == BOTH
    assert outcome.passed["r"] == set()
    outcome.took("r", ["display_name"])
    assert "r" in outcome.refused
    outcome.took("r", ["mobile"])
    assert not outcome.refused
    outcome.refuse("r", (), "two customers")
    outcome.refuse("r", NAME, "a line break")
    assert outcome.refused["r"].fields == ()  # still the whole row
    outcome.took("r", ["mobile"])
    assert not outcome.refused
    outcome.refuse("r", (), "two customers")
    outcome.gone("r")
    assert not outcome.refused


async def test_rows_are_kept_until_they_pass(database_url: str) -> None:
    await migrate(database_url, "deskwire_cdc")
    db = await Database.open(database_url)
    source = Source("t", "s", "i-1", "sqlite", "", "crm", ("c",), None, False, 1, 1)
    other = replace(source, incarnation="i-2")

    async def note(
        source: Source, refused: dict[str, Refusal], passed: dict[str, frozenset[str]]
    ) -> tuple[Source, str]:
        async def work(uow: UnitOfWork) -> tuple[int, str]:
            return await store.refused.note(uow, source, refused, passed)

        count, last = await db.run(work)
        return replace(source, refused_count=count, change_count=source.change_count + 1), last

    both = frozenset(BOTH)
    source, last = await note(source, {}, {"a": both})
    assert (source.refused_count, last) == (0, "")
    source, last = await note(source, {"a": Refusal(NAME, "first"), "b": Refusal((), "x")}, {})
    assert source.refused_count == 2
    await note(other, {"a": Refusal(NAME, "other")}, {})
    source, last = await note(source, {"a": Refusal(NAME, "again")}, {"a": frozenset(["mobile"])})
    assert (source.refused_count, last) == (2, "row a: again")
    source, last = await note(source, {}, {"a": frozenset(["mobile"]), "b": frozenset(["mobile"])})
    assert (source.refused_count, last) == (1, "row a: again")
    source, last = await note(source, {}, {"a": both})
    assert (source.refused_count, last) == (0, "")
    other, last = await note(replace(other, refused_count=1), {}, {})
    assert (other.refused_count, last) == (1, "row a: other")
    await db.close()
