"""What a key may sign: private members of its JWK (RFC 7517, 4), which every verifier enforces.

`dw_roles` and `dw_tenants` are lists of names, `dw_max_lifetime` is in whole seconds. Without them a key that has its
private part, the suite's own, signs everything; a key without it was added for somebody outside, and signs visitors
of the tenants it names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from deskwire_common.auth.principals import ANY_TENANT, Principal, Role, is_name

ROLES_MEMBER: Final = "dw_roles"
TENANTS_MEMBER: Final = "dw_tenants"
LIFETIME_MEMBER: Final = "dw_max_lifetime"
MEMBERS: Final = (ROLES_MEMBER, TENANTS_MEMBER, LIFETIME_MEMBER)

MAX_LIFETIME: Final = 30 * 86400
"""The longest lifetime of any token, in seconds: tokens that the suite mints for itself end within an hour, those that
`deskwire token` gives to people within these 30 days."""

PUBLIC_KEY_LIFETIME: Final = 86400
"""The longest lifetime for a key without its private part whose grant names no other, in seconds."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What one key may sign. `tenants` with ANY_TENANT: all, and the suite itself where the role allows it.

    `max_lifetime` bounds `exp - iat` of a token, in seconds.
    """

    roles: frozenset[Role]
    tenants: frozenset[str]
    max_lifetime: int = MAX_LIFETIME

    @classmethod
    def of_jwk(cls, entry: Mapping[str, Any], *, private: bool) -> Grant:
        """Read the grant of a JWK; `private`: it has its private part. Raises ValueError that says what is wrong."""
        # A limit that is misspelled, or of a later version, must not leave the key without one.
        if unknown := [name for name in entry if name.startswith("dw_") and name not in MEMBERS]:
            raise ValueError(f"{unknown[0]} is no limit that is known here: {_listed(MEMBERS)} are")
        default = _OF_PRIVATE if private else _OF_PUBLIC
        return cls(
            _roles(entry[ROLES_MEMBER]) if ROLES_MEMBER in entry else default.roles,
            _tenants(entry[TENANTS_MEMBER]) if TENANTS_MEMBER in entry else default.tenants,
            _lifetime(entry[LIFETIME_MEMBER]) if LIFETIME_MEMBER in entry else default.max_lifetime,
        )

    def signs_nothing(self) -> str:
        """Return why no token of the key can be good, or "" when one can."""
        if not self.tenants:
            return f"it names no tenant ({TENANTS_MEMBER})"
        return "" if self.roles else f"it names no role ({ROLES_MEMBER})"

    def refusal(self, principal: Principal, lifetime: float) -> str:
        """Return why the key may not sign a token for `principal` of `lifetime` seconds, or "" when it may."""
        if why := self.signs_nothing():
            return f"may sign nothing: {why}"
        if principal.role not in self.roles:
            return f"may not sign role {principal.role.value}, only {_listed(self.roles)}"
        if ANY_TENANT not in self.tenants and principal.tenant not in self.tenants:
            return f"may not sign tenant {principal.tenant}, only {_listed(self.tenants)}"
        # Allow for the fraction: who reads the clock once for iat and again for exp gets a slightly longer lifetime.
        if not lifetime < self.max_lifetime + 1:
            return f"may not sign for longer than {self.max_lifetime} seconds (exp - iat)"
        return ""


_OF_PRIVATE: Final = Grant(frozenset(Role), frozenset({ANY_TENANT}))
_OF_PUBLIC: Final = Grant(frozenset({Role.VISITOR}), frozenset(), PUBLIC_KEY_LIFETIME)


def _roles(value: Any) -> frozenset[Role]:
    known = {role.value: role for role in Role}
    names = _names(value, ROLES_MEMBER)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{ROLES_MEMBER} has {unknown[0]!r}, which is none of {_listed(known)}")
    return frozenset(known[name] for name in names)


def _tenants(value: Any) -> frozenset[str]:
    names = _names(value, TENANTS_MEMBER)
    if wrong := [name for name in names if name != ANY_TENANT and not is_name(name)]:
        raise ValueError(
            f"{TENANTS_MEMBER} has {wrong[0]!r}: a tenant is 1-64 of A-Z a-z 0-9 . _ : @ -, or {ANY_TENANT} for all"
        )
    return frozenset(names)


def _names(value: Any, member: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{member} is not a list of names")
    return value


def _lifetime(value: Any) -> int:
    if type(value) is not int or not 0 < value <= MAX_LIFETIME:
        raise ValueError(f"{LIFETIME_MEMBER} must be whole seconds, from 1 to {MAX_LIFETIME}")
    return value


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(str(name) for name in names))
