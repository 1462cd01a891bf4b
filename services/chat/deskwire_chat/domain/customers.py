"""The rules of customers: one person each, however many systems know them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_chat.domain import contacts
from deskwire_chat.domain.actors import Actor
from deskwire_chat.domain.changes import Change
from deskwire_common import texts
from deskwire_common.auth import Profile
from deskwire_common.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)

VISITOR_NAMESPACE: Final = "visitor"
"""The identity namespace of visitor tokens' subjects."""

MAX_IDENTITIES: Final = 16
"""How many identities a customer may have, as the contract states."""

CUSTOMER_FIELDS: Final = ("display_name", "email", "mobile")
"""The fields of a customer that an update_mask may name."""

_KEYS: Final[Mapping[str, Callable[[str], str]]] = {
    "display_name": contacts.name_key,
    "email": contacts.email_key,
    "mobile": contacts.mobile_key,
}
"""What makes two values of a field the same."""


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """Who a customer is in one system."""

    namespace: str
    value: str


@dataclass(frozen=True, slots=True)
class Customer:
    """One person, however many systems know them."""

    customer_id: str
    tenant: str
    display_name: str = ""
    email: str = ""
    mobile: str = ""
    mobile_raw: str = ""
    """The mobile number as whoever set it wrote it; it changes with `mobile` only."""
    identities: tuple[Identity, ...] = ()
    version: int = 1
    created_at: int = 0
    updated_at: int = 0

    @property
    def user_id(self) -> str:
        """The customer's id in the visitors' system if there is one, else customer_id."""
        for identity in self.identities:
            if identity.namespace == VISITOR_NAMESPACE:
                return identity.value
        return self.customer_id


def kept_values(given: Mapping[str, str], *, default_region: str) -> dict[str, str]:
    """Return values of CUSTOMER_FIELDS as they are kept: trimmed, and a mobile number with `mobile_raw`, as it came.

    `default_region` is that of `contacts.normal_mobile`. Raises InvalidArgument (INVALID_FIELD) for what is no line, or
    has nothing to see.
    """
    kept: dict[str, str] = {}
    for name, text in given.items():
        field = f"customer.{name}"
        trimmed = texts.unwrapped(text) if name == "mobile" else texts.trimmed(text)
        # Systems write blanks for "no address" and "no number", but nobody has a name of blanks.
        kept[name] = texts.line(trimmed or (text if name == "display_name" else ""), field)
    if "mobile" in kept:
        kept["mobile_raw"] = kept["mobile"]
        kept["mobile"] = contacts.normal_mobile(kept["mobile"], default_region=default_region)
    return kept


def check_mask(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the fields that an update_mask names, in the order of CUSTOMER_FIELDS.

    Raises InvalidArgument (INVALID_UPDATE_MASK) for an empty mask, or a field that can't be written.
    """
    asked = set(paths)
    unknown = sorted(asked.difference(CUSTOMER_FIELDS))
    if unknown or not asked:
        what = f"can't write {', '.join(unknown)}" if unknown else "names no field"
        raise InvalidArgument(
            f"update_mask {what}; it may name {', '.join(CUSTOMER_FIELDS)}",
            reason=reasons.ERROR_REASON_INVALID_UPDATE_MASK,
            field="update_mask",
        )
    return tuple(name for name in CUSTOMER_FIELDS if name in asked)


def changed_customer(
    customer: Customer,
    values: Mapping[str, str],
    *,
    add_identities: Iterable[Identity] = (),
    now: int,
) -> tuple[Customer, dict[str, Change]]:
    """Return the customer with `values` and more identities, and the fields that changed.

    Another spelling of the same value is no change. An empty dict of changes means that nothing really changed: the
    customer is returned as they were.
    """
    changes = {
        name: Change(getattr(customer, name) or None, values[name] or None)
        for name, key in _KEYS.items()
        if name in values and key(getattr(customer, name)) != key(values[name])
    }
    changed = {name: values[name] for name in changes}
    if "mobile" in changed:
        changed["mobile_raw"] = values.get("mobile_raw", "")
    identities = tuple(sorted({*customer.identities, *add_identities}))
    if identities != tuple(sorted(customer.identities)):
        changes["identities"] = Change(
            [_identity_value(item) for item in sorted(customer.identities)],
            [_identity_value(item) for item in identities],
        )
    if not changes:
        return customer, {}
    after = replace(
        with_values(customer, changed),
        identities=identities,
        version=customer.version + 1,
        updated_at=now,
    )
    return after, changes


def with_values(customer: Customer, values: Mapping[str, str]) -> Customer:
    """Return the customer with new values of some CUSTOMER_FIELDS, as `kept_values` gives them."""
    return replace(
        customer,
        display_name=values.get("display_name", customer.display_name),
        email=values.get("email", customer.email),
        mobile=values.get("mobile", customer.mobile),
        mobile_raw=values.get("mobile_raw", customer.mobile_raw),
    )


def identity_of(namespace: str, value: str, field: str) -> Identity:
    """Return an identity as it is kept: its value trimmed, as MariaDB doesn't compare blanks at the end.

    Raises InvalidArgument (INVALID_FIELD) for `field`.
    """
    return Identity(namespace, texts.line(value, field))


def identities_of(visitor: Actor) -> list[Identity]:
    """Return the identities in a visitor's token: first the subject, which counts most."""
    ids = visitor.profile.ids if visitor.profile else ()
    return [Identity(VISITOR_NAMESPACE, visitor.subject), *(Identity(*each) for each in ids)]


def filled(customer: Customer, visitor: Actor, *, default_region: str) -> dict[str, str]:
    """Return values from the visitor's token for fields that are empty, as `kept_values` gives them."""
    profile = visitor.profile or Profile()
    offered = {
        "display_name": visitor.name,
        "email": profile.email,
        "mobile": profile.mobile,
    }
    # What can't be kept is left out: it shuts nobody out.
    kept = {name: text for name, text in offered.items() if texts.line_or_none(text)}
    return missing(customer, kept_values(kept, default_region=default_region))


def missing(customer: Customer, offered: Mapping[str, str]) -> dict[str, str]:
    """Return what is offered, as `kept_values` gives it, for fields that are empty."""
    return {name: value for name, value in offered.items() if value and not getattr(customer, name)}


def _identity_value(identity: Identity) -> dict[str, str]:
    return {"namespace": identity.namespace, "value": identity.value}


def customer_not_found(what: str) -> NotFound:
    """Return the error for a customer that the caller's tenant doesn't have."""
    return NotFound(f"no customer {what}", reason=reasons.ERROR_REASON_CUSTOMER_NOT_FOUND)


def identity_conflict(first: str, second: str) -> FailedPrecondition:
    """Return the error for identities that belong to two customers."""
    return FailedPrecondition(
        f"the identities belong to two customers, {first} and {second}; nothing was changed",
        reason=reasons.ERROR_REASON_IDENTITY_CONFLICT,
        metadata={"customer_id": first, "other_customer_id": second},
    )
