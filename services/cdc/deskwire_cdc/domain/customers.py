"""The customer rule: what a row change says of a customer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from deskwire_cdc.domain.changes import Json, NumberedChange, Row
from deskwire_cdc.domain.sources import CustomerRule, Source
from deskwire_common import texts

VISITOR_NAMESPACE = "visitor"
CUSTOMER_FIELDS = ("display_name", "email", "mobile")


@dataclass(frozen=True, slots=True)
class CustomerCall:
    """A call of UpsertCustomer for a row."""

    request_id: str
    identities: tuple[tuple[str, str], ...]
    values: Mapping[str, str]
    mask: tuple[str, ...]
    source_version: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why chat doesn't take a row; `fields`: only these of the customer, none: the whole row. Never what is in them."""

    fields: tuple[str, ...]
    why: str


def without(call: CustomerCall, fields: tuple[str, ...]) -> CustomerCall | None:
    """Return a call for what is left of a row without some fields; None when nothing is, or they say nothing of it."""
    mask = tuple(name for name in call.mask if name not in fields)
    if not mask or mask == call.mask:
        return None
    return replace(
        call,
        request_id=f"{call.request_id}:without-{'-'.join(fields)}",
        mask=mask,
        values={name: value for name, value in call.values.items() if name not in fields},
    )


def customer_call(source: Source, numbered: NumberedChange) -> CustomerCall | None:
    """Return what a row change says of a customer; None when it says nothing.

    Only the columns that the change really touched are written: a row that is saved with an old phone number, since
    somebody corrected the e-mail address, must not undo a phone number that the desk has just changed.
    """
    rule, change = source.customer_rule, numbered.change
    if rule is None or change.table != rule.table or change.after is None:
        return None
    identities = _identities(source, rule, change.after)
    if not identities:
        return None
    values = {name: _text(change.after.get(column)) for name, column in rule.columns.items()}
    mask = tuple(name for name in CUSTOMER_FIELDS if name in values)
    before = change.before
    if before is not None and _identities(source, rule, before) == identities:
        touched = {name: _text(before.get(column)) for name, column in rule.columns.items()}
        mask = tuple(name for name in mask if touched[name] != values[name])
        if not mask:
            return None
    return CustomerCall(
        request_id=f"cdc:{numbered.event_id}",
        identities=identities,
        values=values,
        mask=mask,
        source_version=_source_version(rule, numbered),
    )


def missing_fields(call: CustomerCall, known: Mapping[str, str]) -> CustomerCall | None:
    """Return a second call for what the row knows and the customer lacks, after one that wrote only what was touched.

    `known`: the customer's fields after the first call. That is how a customer whom the desk met only now gets a name.
    """
    mask = tuple(
        name
        for name in CUSTOMER_FIELDS
        if name not in call.mask
        # Chat keeps nothing of blanks.
        and texts.trimmed(call.values.get(name, ""))
        and not known.get(name)
    )
    if not mask:
        return None
    return replace(call, request_id=f"{call.request_id}:rest", mask=mask)


def _identities(source: Source, rule: CustomerRule, row: Row) -> tuple[tuple[str, str], ...]:
    own = _text(row.get(rule.id_column))
    if not own:
        return ()
    visitor = _text(row.get(rule.visitor_column)) if rule.visitor_column else ""
    pairs = [(source.system_id, own)]
    if visitor:
        pairs.append((VISITOR_NAMESPACE, visitor))
    return tuple(pairs)


def _source_version(rule: CustomerRule, numbered: NumberedChange) -> int:
    if not rule.version_column or numbered.change.after is None:
        return numbered.source_version
    value = numbered.change.after.get(rule.version_column)
    # Big integers travel as text; what isn't a whole number can't be compared: then the last call wins.
    text = str(value)
    return int(text) if text.isdecimal() and int(text) < 2**63 else 0


def _text(value: Json) -> str:
    return "" if value is None else str(value)
