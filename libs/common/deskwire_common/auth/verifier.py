"""Verifying tokens: the signature, the times, the claims, and that the key may sign this."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import jwt

from deskwire.common.v1.error_reason_pb2 import ErrorReason
from deskwire_common.auth.keys import ALGORITHM, KeySet, VerifyingKey
from deskwire_common.auth.principals import Principal, Role, checked_principal
from deskwire_common.auth.profiles import profile_of
from deskwire_common.clock import Clock, SystemClock
from deskwire_common.errors import Unauthenticated
from deskwire_common.logging import get_logger

ISSUER: Final = "deskwire"
AUDIENCE: Final = "deskwire"
RELOAD_SECONDS: Final = 1.0
"""How often a process looks at the keys file, in seconds."""

CLOCK_GRACE: Final = 60.0
"""Seconds by which `iat` and `nbf` may lie in the future: the clock of a website's server may be ahead."""
EXPIRY_GRACE: Final = 5.0
"""Seconds for which a token is accepted after its `exp`. Few, as more would let every leaked token live longer."""
_LONGEST_WAIT = 3600.0  # seconds; a clock may be set right before, or a better token be signed
_CACHED_TOKENS = 20_000
_MAX_TOKEN = 4096


def token_expired() -> Unauthenticated:
    """Return the error for a token that was good until now."""
    return Unauthenticated(
        "the token has expired: come back with a new one",
        reason=ErrorReason.ERROR_REASON_TOKEN_EXPIRED,
    )


def _not_valid_yet(claim: str, seconds: float) -> Unauthenticated:
    """Return the error for a token that will be good in so many seconds."""
    return Unauthenticated(
        f"the token is not valid yet ({claim} is in the future): come back later, or have it signed "
        "by a machine whose clock is right",
        retry_after=min(seconds, _LONGEST_WAIT),
    )


class TokenVerifier:
    """Verifies tokens; remembers the ones it has seen (by hash) until they expire or the keys change."""

    def __init__(
        self, keys: KeySet, clock: Clock | None = None, *, cached: int = _CACHED_TOKENS
    ) -> None:
        self._keys = keys
        self._clock = clock or SystemClock()
        self._cached = cached
        self._cache: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()
        self._generation = keys.generation
        self._looked = self._clock.monotonic()
        self._name_silent_keys()

    def verify(self, token: str) -> Principal:
        """Return the principal of a token.

        Raises Unauthenticated with TOKEN_MISSING (empty), TOKEN_EXPIRED or TOKEN_INVALID; the last one is temporary,
        with the seconds to wait, for a token that is not valid yet. Costs ~150 µs the first time, ~2 µs after; looks
        at the keys file at most once a second.
        """
        return self.verify_with_expiry(token)[0]

    def verify_with_expiry(self, token: str) -> tuple[Principal, float]:
        """Like `verify`; also returns when the token expires, in seconds since 1970."""
        if not token:
            raise Unauthenticated(
                "a bearer token is needed", reason=ErrorReason.ERROR_REASON_TOKEN_MISSING
            )
        if len(token) > _MAX_TOKEN:
            raise Unauthenticated(f"the token is longer than {_MAX_TOKEN} characters")
        self._follow_keys()
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._cache.get(digest)
        if known is None:
            known = self._decode(token)
            self._cache[digest] = known
            if len(self._cache) > self._cached:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(digest)
        if self._clock.now().timestamp() >= known[1] + EXPIRY_GRACE:
            self._cache.pop(digest, None)
            raise token_expired()
        return known

    def seconds_until(self, expires: float) -> float:
        """Return for how many seconds a token that expires at that time (seconds since 1970) is still accepted."""
        return max(0.0, expires + EXPIRY_GRACE - self._clock.now().timestamp())

    def generation(self) -> int:
        """Return a number that is another one when the keys are: what a token was good for may be over."""
        self._follow_keys()
        return self._generation

    def _follow_keys(self) -> None:
        now = self._clock.monotonic()
        if now - self._looked >= RELOAD_SECONDS:
            self._looked = now
            self._keys.refresh()
        if self._keys.generation != self._generation:
            self._generation = self._keys.generation
            self._cache.clear()  # when a key is removed, or may sign less, its tokens end too
            self._name_silent_keys()

    def _name_silent_keys(self) -> None:
        for key in self._keys.verifying_keys:
            if why := key.grant.signs_nothing():
                get_logger().warning("key_signs_nothing", kid=key.kid, reason=why)

    def _decode(self, token: str) -> tuple[Principal, float]:
        try:
            key = self._key_of(token)
            claims = jwt.decode(
                token,
                key.public,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                # Times are read in `_times`, and compared with the injected clock.
                options={
                    "require": ["exp", "iat", "sub"],
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
        # Anybody can send a text of brackets only, which nests deeper than the parser goes.
        except (jwt.InvalidTokenError, ValueError, RecursionError) as error:
            raise Unauthenticated("the token can't be verified") from error
        principal = _principal(claims)
        times = _times(claims)
        if why := key.grant.refusal(principal, times.lifetime):
            raise Unauthenticated(
                f"the token was signed by key {key.kid}, which {why}: "
                "sign another token, or have an operator of the suite change the key's limits"
            )
        self._check_begin(times)
        return principal, times.expires

    def _key_of(self, token: str) -> VerifyingKey:
        kid = jwt.get_unverified_header(token).get("kid", "")
        key = self._keys.verifying(kid) if isinstance(kid, str) else None
        if key is None:
            raise Unauthenticated("the token was signed by a key that is not known here")
        return key

    def _check_begin(self, times: _Times) -> None:
        claim = "nbf" if times.not_before > times.issued else "iat"
        begin = max(times.issued, times.not_before) - CLOCK_GRACE
        wait = begin - self._clock.now().timestamp()
        if wait <= 0:
            return
        if begin >= times.expires + EXPIRY_GRACE:
            raise Unauthenticated(f"the token ends (exp) before it begins ({claim})")
        raise _not_valid_yet(claim, wait)


class _Times(NamedTuple):
    """Of a token, in seconds since 1970."""

    issued: float
    not_before: float
    expires: float

    @property
    def lifetime(self) -> float:
        return self.expires - self.issued


def _times(claims: Mapping[str, Any]) -> _Times:
    issued = _seconds(claims, "iat")
    not_before = _seconds(claims, "nbf") if "nbf" in claims else issued
    return _Times(issued, not_before, _seconds(claims, "exp"))


def _seconds(claims: Mapping[str, Any], claim: str) -> float:
    """Read a NumericDate (RFC 7519, 2): an integer or a fraction, which JSON of Python also calls NaN or Infinity."""
    value = claims[claim]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unauthenticated(f"the token's {claim} is not a number of seconds")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise Unauthenticated(f"the token's {claim} is not a finite number of seconds")
    return seconds


def _principal(claims: Mapping[str, Any]) -> Principal:
    text = {name: claims.get(name, "") for name in ("tid", "sub", "role", "sys")}
    if not all(isinstance(value, str) for value in text.values()):
        raise Unauthenticated("a claim of the token is not text")
    try:
        role = Role(text["role"])
    except ValueError:
        raise Unauthenticated("the token has a role that is not known here") from None
    name, profile = profile_of(claims, visitor=role is Role.VISITOR)
    try:
        return checked_principal(
            Principal(text["tid"], role, text["sub"], text["sys"], name, profile)
        )
    except ValueError as error:
        raise Unauthenticated(f"the token can't be used: {error}") from None
