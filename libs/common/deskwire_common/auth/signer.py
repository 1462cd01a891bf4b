"""Making tokens: for the services themselves, for people, and for integrations that bring their secret."""

from __future__ import annotations

from typing import Any

import jwt

from deskwire_common.auth.keys import ALGORITHM, KeySet
from deskwire_common.auth.principals import (
    ANY_TENANT,
    Principal,
    Profile,
    Role,
    checked_principal,
)
from deskwire_common.auth.verifier import AUDIENCE, ISSUER, RELOAD_SECONDS
from deskwire_common.clock import Clock, SystemClock

_REUSED_SECONDS = 3600.0
_REUSED_TOKENS = 20_000


class TokenSigner:
    """Makes tokens with the first private key of the set."""

    def __init__(
        self, keys: KeySet, clock: Clock | None = None, *, subject: str = "service"
    ) -> None:
        self._keys = keys
        self._clock = clock or SystemClock()
        self._subject = subject
        self._reused: dict[tuple[str, Role, str, str], tuple[str, float, int]] = {}
        self._looked = self._clock.monotonic()

    def mint(
        self,
        *,
        tenant: str,
        role: Role,
        subject: str,
        system: str = "",
        name: str = "",
        profile: Profile | None = None,
        ttl: float = 3600.0,
    ) -> str:
        """Return a token good for `ttl` seconds.

        Raises ValueError for malformed parts and for what the key may not sign, KeysError without a private key.
        """
        principal = checked_principal(Principal(tenant, Role(role), subject, system, name, profile))
        self._follow_keys()
        key = self._keys.signing_key()
        if why := key.grant.refusal(principal, ttl):
            raise ValueError(f"key {key.kid} {why}")
        kid, private = self._keys.signing()
        claims = _claims(principal, self._clock.now().timestamp(), ttl)
        return jwt.encode(claims, private, algorithm=ALGORITHM, headers={"kid": kid})

    def service_token(self, tenant: str = ANY_TENANT) -> str:
        """Return a token of role service; see `reused_token`."""
        return self.reused_token(tenant=tenant, role=Role.SERVICE, subject=self._subject)

    def reused_token(self, *, tenant: str, role: Role, subject: str, system: str = "") -> str:
        """Return a token that is reused until half of its life is over or the keys changed. Raises like `mint`."""
        self._follow_keys()
        monotonic = self._clock.monotonic()
        key = tenant, role, subject, system
        token, until, generation = self._reused.get(key, ("", 0.0, 0))
        if monotonic >= until or generation != self._keys.generation:
            ttl = min(_REUSED_SECONDS, self._keys.signing_key().grant.max_lifetime)
            token = self.mint(tenant=tenant, role=role, subject=subject, system=system, ttl=ttl)
            if len(self._reused) >= _REUSED_TOKENS:
                self._reused.clear()
            self._reused[key] = (token, monotonic + ttl / 2, self._keys.generation)
        return token

    def _follow_keys(self) -> None:
        now = self._clock.monotonic()
        if now - self._looked >= RELOAD_SECONDS:
            self._looked = now
            self._keys.refresh()


def _claims(principal: Principal, now: float, ttl: float) -> dict[str, Any]:
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": principal.subject,
        "tid": principal.tenant,
        "role": principal.role.value,
        "iat": int(now),
        "exp": int(now + ttl),
    }
    profile = principal.profile or Profile()
    optional = {
        "sys": principal.system,
        "name": principal.name,
        "email": profile.email,
        "phone_number": profile.mobile,
        "ids": dict(profile.ids),
    }
    return claims | {claim: value for claim, value in optional.items() if value}
