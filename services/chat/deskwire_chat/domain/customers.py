"""The rules of customers: one person each, however many systems know them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import phonenumbers

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_chat.domain.actors import Actor
from deskwire_chat.domain.changes import Change
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


def normalise_mobile(text: str, *, default_region: str = "") -> str:
    """Return a mobile number as E.164 if it can be read so, else as given without outer blanks.

    `default_region` (`CN`, `DE`, …) is the region of numbers without a leading +; empty: they stay as given.
    """
    given = text.strip()
    if not given or (not given.startswith("+") and not default_region):
        return given
    try:
        number = phonenumbers.parse(given, default_region or None)
    except phonenumbers.NumberParseException:
        return given
    if not phonenumbers.is_possible_number(number):
        return given
    return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))


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

    An empty dict of changes means that nothing really changed: the customer is returned as they were.
    """
    changes = {
        name: Change(getattr(customer, name) or None, value or None)
        for name, value in values.items()
        if getattr(customer, name) != value
    }
    identities = tuple(sorted({*customer.identities, *add_identities}))
    if identities != tuple(sorted(customer.identities)):
        changes["identities"] = Change(
            [_identity_value(item) for item in sorted(customer.identities)],
            [_identity_value(item) for item in identities],
        )
    if not changes:
        return customer, {}
    after = replace(
        with_values(customer, values),
        identities=identities,
        version=customer.version + 1,
        updated_at=now,
    )
    return after, changes


def with_values(customer: Customer, values: Mapping[str, str]) -> Customer:
    """Return the customer with new values of some CUSTOMER_FIELDS."""
    return replace(
        customer,
        display_name=values.get("display_name", customer.display_name),
        email=values.get("email", customer.email),
        mobile=values.get("mobile", customer.mobile),
    )


def identities_of(visitor: Actor) -> list[Identity]:
    """Return the identities in a visitor's token: first the subject, which counts most."""
    ids = visitor.profile.ids if visitor.profile else ()
    return [Identity(VISITOR_NAMESPACE, visitor.subject), *(Identity(*each) for each in ids)]


def filled(customer: Customer, visitor: Actor, *, default_region: str) -> dict[str, str]:
    """Return values from the visitor's token for fields that are empty."""
    profile = visitor.profile or Profile()
    offered = {
        "display_name": visitor.name,
        "email": profile.email.strip(),
        "mobile": normalise_mobile(profile.mobile, default_region=default_region),
    }
    return missing(customer, offered)


def missing(customer: Customer, offered: Mapping[str, str]) -> dict[str, str]:
    """Return what is offered for fields that are empty."""
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
