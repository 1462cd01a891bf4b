"""Who calls: JWTs signed with Ed25519 by a key of the keys file (a JWK set, RFC 7517/8037).

The tenant is always the token's. The algorithm is the key's, never the token header's.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from jwt.algorithms import OKPAlgorithm

from deskwire.common.v1.error_reason_pb2 import ErrorReason
from deskwire_common.clock import Clock, SystemClock
from deskwire_common.errors import Unauthenticated

ISSUER: Final = "deskwire"
AUDIENCE: Final = "deskwire"
ALGORITHM: Final = "EdDSA"
ANY_TENANT: Final = "*"
"""The tenant of a service that speaks for many, and of an operator of the whole suite; nobody else may have it."""

_NAME = re.compile(r"[A-Za-z0-9._:@-]{1,64}")
_LEEWAY = 5.0  # seconds that two machines' clocks may differ
_CACHED_TOKENS = 20_000
_RELOAD_SECONDS = 1.0
_MAX_TOKEN = 4096
_MAX_DISPLAY_NAME = 128
_MAX_EMAIL = 254  # RFC 5321, 4.5.3.1.3
_MAX_PHONE = 32
_MAX_IDS = 15  # a customer has up to 16 identities, and the subject is one
_MAX_ID = 128


class Role(StrEnum):
    """What a token's holder is to deskwire; the values are those of the `role` claim."""

    VISITOR = "visitor"
    AGENT = "agent"
    BOT = "bot"
    INTEGRATION = "integration"
    OPERATOR = "operator"
    SERVICE = "service"


_ANY_TENANT_ROLES: Final = frozenset({Role.SERVICE, Role.OPERATOR})


@dataclass(frozen=True, slots=True)
class Profile:
    """What a visitor's token vouches for: the website has verified it. `ids`: (system, the visitor's id there)."""

    email: str = ""
    mobile: str = ""
    ids: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Principal:
    """A verified caller. `system` is the system id of an integration (`crm:main`), else empty.

    `profile` is a visitor's, where the token has one.
    """

    tenant: str
    role: Role
    subject: str
    system: str = ""
    name: str = ""
    profile: Profile | None = None

    @property
    def runs_the_suite(self) -> bool:
        """Whether this is an operator of all tenants."""
        return self.role is Role.OPERATOR and self.tenant == ANY_TENANT


class KeysError(ValueError):
    """The keys file can't be used; the message says why."""


class KeySet:
    """Signing and verifying keys. `load`ed from a file it follows the file: rotation needs no restart."""

    def __init__(self, document: Mapping[str, Any], path: Path | None = None) -> None:
        self._path = path
        self._mtime = 0
        self._adopt(document)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KeySet:
        """Read a JWK set. Raises KeysError when there is none, or no Ed25519 key in it. Blocks briefly."""
        file = Path(path)
        mtime, document = _read(file)
        keys = cls(document, file)
        keys._mtime = mtime
        return keys

    @classmethod
    def generate(cls) -> KeySet:
        """Make a set with one new key."""
        private = Ed25519PrivateKey.generate()
        jwk = json.loads(OKPAlgorithm.to_jwk(private))
        kid = hashlib.sha256(jwk["x"].encode()).hexdigest()[:16]
        return cls({"keys": [{**jwk, "kid": kid, "alg": ALGORITHM, "use": "sig"}]})

    def rotated(self) -> KeySet:
        """Return a set that signs with a new key and still verifies with all of these."""
        fresh = KeySet.generate()._document  # noqa: SLF001 - its own class
        return KeySet({"keys": [*fresh["keys"], *self._document["keys"]]})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the set, private parts included, readable by the owner only; replaces the file whole. Blocks."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "w") as file:
            json.dump(self._document, file, indent=2)
        Path(name).replace(target)

    @property
    def generation(self) -> int:
        """Grows with every change of the keys."""
        return self._generation

    def verifying(self, kid: str) -> Ed25519PublicKey | None:
        """Return the key of that id, or None."""
        return self._public.get(kid)

    def signing(self) -> tuple[str, Ed25519PrivateKey]:
        """Return the id and the first private key. Raises KeysError when the set can only verify."""
        if self._private is None:
            raise KeysError("the keys file has no private key: this process can't sign tokens")
        return self._private

    def secrets(self, purpose: str) -> list[bytes]:
        """Return keys for HMACs of one purpose, derived from the private keys: sign with the first, take all.

        Processes with the same keys file have the same, and they rotate with it. Raises KeysError without a private
        key.
        """
        private = [str(entry["d"]) for entry in self._document["keys"] if entry.get("d")]
        if not private:
            raise KeysError("the keys file has no private key: this process can't sign URLs")
        return [
            hmac.digest(each.encode(), f"deskwire {purpose}".encode(), "sha256") for each in private
        ]

    def refresh(self) -> None:
        """Read the file again if it changed. A file that is broken for the moment leaves the old keys."""
        if self._path is None:
            return
        try:
            if self._path.stat().st_mtime_ns == self._mtime:
                return
            mtime, document = _read(self._path)
            self._adopt(document)
        except (OSError, KeysError):
            return
        self._mtime = mtime

    def _adopt(self, document: Mapping[str, Any]) -> None:
        entries = document.get("keys")
        if not isinstance(entries, list) or not entries:
            raise KeysError('the keys file is not a JWK set: {"keys": [...]} expected')
        public: dict[str, Ed25519PublicKey] = {}
        private: tuple[str, Ed25519PrivateKey] | None = None
        for entry in entries:
            kid, key = _parse(entry)
            if isinstance(key, Ed25519PrivateKey):
                private = private or (kid, key)
                key = key.public_key()
            public[kid] = key
        self._document = document
        self._public = public
        self._private = private
        self._generation = getattr(self, "_generation", 0) + 1


def _parse(entry: Any) -> tuple[str, Ed25519PrivateKey | Ed25519PublicKey]:
    if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str) or not entry["kid"]:
        raise KeysError("a key of the keys file has no kid")
    if entry.get("kty") != "OKP" or entry.get("crv") != "Ed25519":
        raise KeysError(f"key {entry['kid']}: only Ed25519 keys (kty OKP) are used here")
    try:
        key = OKPAlgorithm.from_jwk(entry)
    except (jwt.InvalidKeyError, ValueError, TypeError) as error:
        raise KeysError(f"key {entry['kid']}: {error}") from None
    if not isinstance(key, Ed25519PrivateKey | Ed25519PublicKey):
        raise KeysError(f"key {entry['kid']}: only Ed25519 keys (kty OKP) are used here")
    return entry["kid"], key


def _read(path: Path) -> tuple[int, dict[str, Any]]:
    try:
        mtime = path.stat().st_mtime_ns
        document = json.loads(path.read_text())
    except OSError as error:
        raise KeysError(f"can't read the keys file {path}: {error.strerror}") from None
    except ValueError:
        raise KeysError(f"the keys file {path} is not JSON") from None
    if not isinstance(document, dict):
        raise KeysError(f"the keys file {path} is not a JWK set")
    return mtime, document


def token_expired() -> Unauthenticated:
    """Return the error for a token that was good until now."""
    return Unauthenticated(
        "the token has expired: come back with a new one",
        reason=ErrorReason.ERROR_REASON_TOKEN_EXPIRED,
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

    def verify(self, token: str) -> Principal:
        """Return who the token speaks for.

        Raises Unauthenticated with TOKEN_MISSING (empty), TOKEN_EXPIRED or TOKEN_INVALID. Costs ~150 µs the
        first time, ~2 µs after; looks at the keys file at most once a second.
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
        if self._clock.now().timestamp() >= known[1] + _LEEWAY:
            self._cache.pop(digest, None)
            raise token_expired()
        return known

    def seconds_until(self, expires: float) -> float:
        """Return how long a token that expires at that time (seconds since 1970) is still taken."""
        return max(0.0, expires + _LEEWAY - self._clock.now().timestamp())

    def _follow_keys(self) -> None:
        now = self._clock.monotonic()
        if now - self._looked >= _RELOAD_SECONDS:
            self._looked = now
            self._keys.refresh()
        if self._keys.generation != self._generation:
            self._generation = self._keys.generation
            self._cache.clear()  # a key that was taken away takes its tokens with it

    def _decode(self, token: str) -> tuple[Principal, float]:
        try:
            kid = jwt.get_unverified_header(token).get("kid", "")
            key = self._keys.verifying(kid) if isinstance(kid, str) else None
            if key is None:
                raise Unauthenticated("the token was signed by a key that is not known here")
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                # Time is compared with the injected clock, in the caller.
                options={
                    "require": ["exp", "iat", "sub"],
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
        except (jwt.InvalidTokenError, ValueError) as error:
            raise Unauthenticated("the token can't be verified") from error
        now = self._clock.now().timestamp()
        for claim in ("iat", "nbf"):
            if _seconds(claims, claim, now) > now + _LEEWAY:
                raise Unauthenticated(f"the token is not valid yet ({claim} is in the future)")
        return _principal(claims), _seconds(claims, "exp", 0)


def _seconds(claims: Mapping[str, Any], claim: str, default: float) -> float:
    value = claims.get(claim, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unauthenticated(f"the token's {claim} is not a number of seconds")
    return float(value)


def _principal(claims: Mapping[str, Any]) -> Principal:
    text = {name: claims.get(name, "") for name in ("tid", "sub", "role", "sys", "name")}
    if not all(isinstance(value, str) for value in text.values()):
        raise Unauthenticated("a claim of the token is not text")
    try:
        role = Role(text["role"])
    except ValueError:
        raise Unauthenticated("the token has a role that is not known here") from None
    profile = _profile(claims) if role is Role.VISITOR else None
    try:
        return checked_principal(
            Principal(text["tid"], role, text["sub"], text["sys"], text["name"], profile)
        )
    except ValueError as error:
        raise Unauthenticated(f"the token can't be used: {error}") from None


def _profile(claims: Mapping[str, Any]) -> Profile | None:
    """Read `email` and `phone_number` (OpenID Connect Core, 5.1) and `ids` (an object: system to id)."""
    email, mobile, ids = (
        claims.get("email", ""),
        claims.get("phone_number", ""),
        claims.get("ids", {}),
    )
    if not isinstance(email, str) or not isinstance(mobile, str):
        raise Unauthenticated("email or phone_number of the token is not text")
    if not isinstance(ids, dict) or not all(isinstance(value, str) for value in ids.values()):
        raise Unauthenticated('ids of the token is not an object of text: {"crm:main": "4711"}')
    return Profile(email, mobile, tuple(sorted(ids.items()))) if email or mobile or ids else None


def _check_profile(profile: Profile) -> None:
    if len(profile.email) > _MAX_EMAIL or not profile.email.isprintable():
        raise ValueError(f"email must be printable, of up to {_MAX_EMAIL} characters")
    if len(profile.mobile) > _MAX_PHONE or not profile.mobile.isprintable():
        raise ValueError(f"phone_number must be printable, of up to {_MAX_PHONE} characters")
    if len(profile.ids) > _MAX_IDS:
        raise ValueError(f"ids has more than {_MAX_IDS} entries")
    for system, value in profile.ids:
        if not _NAME.fullmatch(system) or system == Role.VISITOR:
            raise ValueError("a system of ids must be a system id such as crm:main")
        if not 0 < len(value) <= _MAX_ID or not value.isprintable():
            raise ValueError(f"an id of ids must be 1-{_MAX_ID} printable characters")


def checked_principal(principal: Principal) -> Principal:
    """Return `principal` if its parts have the right form, else raise ValueError that says which has not."""
    any_tenant = principal.tenant == ANY_TENANT and principal.role in _ANY_TENANT_ROLES
    if not any_tenant and not _NAME.fullmatch(principal.tenant):
        raise ValueError("tenant must be 1-64 of A-Z a-z 0-9 . _ : @ -")
    if not _NAME.fullmatch(principal.subject):
        raise ValueError("subject must be 1-64 of A-Z a-z 0-9 . _ : @ -")
    if principal.role is Role.INTEGRATION:
        if not _NAME.fullmatch(principal.system):
            raise ValueError("an integration needs a system id, such as crm:main")
    elif principal.system:
        raise ValueError("only an integration has a system id")
    if len(principal.name) > _MAX_DISPLAY_NAME:
        raise ValueError(f"name is longer than {_MAX_DISPLAY_NAME} characters")
    if principal.profile is not None:
        if principal.role is not Role.VISITOR:
            raise ValueError("only a visitor's token has email, phone_number and ids")
        _check_profile(principal.profile)
    return principal


class TokenSigner:
    """Makes tokens with the first private key of the set."""

    def __init__(
        self, keys: KeySet, clock: Clock | None = None, *, subject: str = "service"
    ) -> None:
        self._keys = keys
        self._clock = clock or SystemClock()
        self._subject = subject
        self._service: dict[str, tuple[str, float, int]] = {}
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
        """Return a token good for `ttl` seconds. Raises ValueError for malformed parts, KeysError without a key."""
        principal = checked_principal(Principal(tenant, Role(role), subject, system, name, profile))
        self._follow_keys()
        now = self._clock.now().timestamp()
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": principal.subject,
            "tid": principal.tenant,
            "role": principal.role.value,
            "iat": int(now),
            "exp": int(now + ttl),
        }
        if system:
            claims["sys"] = system
        if name:
            claims["name"] = name
        if profile is not None:
            named = {"email": profile.email, "phone_number": profile.mobile}
            claims |= {claim: value for claim, value in named.items() if value}
            if profile.ids:
                claims["ids"] = dict(profile.ids)
        kid, key = self._keys.signing()
        return jwt.encode(claims, key, algorithm=ALGORITHM, headers={"kid": kid})

    def service_token(self, tenant: str = ANY_TENANT) -> str:
        """Return a token of role service, reused until half of its hour is over or the keys changed."""
        self._follow_keys()
        monotonic = self._clock.monotonic()
        token, until, generation = self._service.get(tenant, ("", 0.0, 0))
        if monotonic >= until or generation != self._keys.generation:
            token = self.mint(tenant=tenant, role=Role.SERVICE, subject=self._subject)
            if len(self._service) >= _CACHED_TOKENS:
                self._service.clear()
            self._service[tenant] = (token, monotonic + 1800.0, self._keys.generation)
        return token

    def _follow_keys(self) -> None:
        now = self._clock.monotonic()
        if now - self._looked >= _RELOAD_SECONDS:
            self._looked = now
            self._keys.refresh()


_PRINCIPAL: ContextVar[Principal] = ContextVar("deskwire_principal")


def current_principal() -> Principal:
    """Return who makes the call that is being served. Raises Unauthenticated outside of a call."""
    principal = _PRINCIPAL.get(None)
    if principal is None:
        raise Unauthenticated(
            "a bearer token is needed", reason=ErrorReason.ERROR_REASON_TOKEN_MISSING
        )
    return principal


def set_current_principal(principal: Principal) -> None:
    """Make `principal` the caller for the rest of this task. For the server; others use `acting_as`."""
    _PRINCIPAL.set(principal)


@contextmanager
def acting_as(principal: Principal) -> Iterator[None]:
    """Run a block on behalf of `principal`: consumers and timers, which no token called."""
    token = _PRINCIPAL.set(principal)
    try:
        yield
    finally:
        _PRINCIPAL.reset(token)
