"""Tokens: who is let in as whom, and what everybody else is told."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from deskwire_common.auth import (
    ALGORITHM,
    ANY_TENANT,
    MAX_LIFETIME,
    KeysError,
    KeySet,
    Principal,
    Profile,
    Role,
    TokenSigner,
    TokenVerifier,
    profiles,
)
from deskwire_common.clock import ManualClock
from deskwire_common.errors import Unauthenticated

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LEFT_OUT: Any = object()
CLAIMS = {
    "iss": "deskwire",
    "aud": "deskwire",
    "sub": "me",
    "tid": "acme",
    "role": "visitor",
    "iat": int(NOW.timestamp()),
    "exp": int(NOW.timestamp()) + 60,
}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def keys() -> KeySet:
    return KeySet.generate()


def reason(verifier: TokenVerifier, token: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        verifier.verify(token)
    return caught.value.reason_name


def forged(keys: KeySet, *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token that the key has signed, whatever it says; LEFT_OUT takes a claim out."""
    kid, key = keys.signing()
    wanted = {name: value for name, value in (CLAIMS | claims).items() if value is not LEFT_OUT}
    # Not jwt.encode, which looks at some claims itself.
    return jwt.PyJWS().encode(
        json.dumps(wanted).encode(), key, ALGORITHM, {"kid": kid} if headers is None else headers
    )


@pytest.mark.parametrize(
    "principal",
    [
        Principal("acme", Role.VISITOR, "v-1", name="Li Na"),
        Principal("acme", Role.VISITOR, "v-1", profile=Profile("a@b.c", "+49", (("crm:x", "1"),))),
        Principal("acme", Role.AGENT, "alice"),
        Principal("acme", Role.INTEGRATION, "crm", system="crm:main"),
        Principal(ANY_TENANT, Role.OPERATOR, "root"),
        Principal(ANY_TENANT, Role.SERVICE, "chat"),
    ],
)
def test_a_token_says_who_was_meant(keys: KeySet, clock: ManualClock, principal: Principal) -> None:
    token = TokenSigner(keys, clock).mint(
        tenant=principal.tenant,
        role=principal.role,
        subject=principal.subject,
        system=principal.system,
        name=principal.name,
        profile=principal.profile,
    )
    assert TokenVerifier(keys, clock).verify(token) == principal


def test_no_token_and_no_sense(keys: KeySet, clock: ManualClock) -> None:
    verifier = TokenVerifier(keys, clock)
    assert reason(verifier, "") == "TOKEN_MISSING"
    # Deeper than a parser goes, in the header, which nobody has signed.
    nested = base64.urlsafe_b64encode(b'{"kid":' + b"[" * 2900).decode().rstrip("=") + ".e30.e30"
    for token in ("nonsense", "a.b.c", "ü" * 20, "x" * 5000, forged(keys)[:-3], nested):
        assert reason(verifier, token) == "TOKEN_INVALID"


def test_a_token_ends(keys: KeySet, clock: ManualClock) -> None:
    verifier = TokenVerifier(keys, clock)
    token = TokenSigner(keys, clock).mint(tenant="t", role=Role.AGENT, subject="a", ttl=60)
    _, expires = verifier.verify_with_expiry(token)
    assert expires == NOW.timestamp() + 60
    clock.advance(64)  # the grace is five seconds
    verifier.verify(token)
    assert 0 < verifier.seconds_until(expires) <= 1
    clock.advance(2)
    assert reason(verifier, token) == "TOKEN_EXPIRED"
    assert verifier.seconds_until(expires) == 0


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "somebody"},
        {"aud": "somebody"},
        {"aud": LEFT_OUT},
        {"sub": LEFT_OUT},
        {"exp": LEFT_OUT},
        {"iat": LEFT_OUT},
        {"exp": "soon"},
        {"exp": True},
        *({"exp": value} for value in (math.nan, math.inf, -math.inf, 10**900, [1], {}, "1")),
        *({"iat": value} for value in (math.nan, math.inf, -math.inf, 10**900, True, "1")),
        *({"nbf": value} for value in (math.nan, math.inf, -math.inf, 10**900, True, None, "1")),
        {"exp": 10**18},
        {"exp": int(NOW.timestamp()) + MAX_LIFETIME + 1},
        {"iat": 0},
        {"iat": -1e308, "exp": 1e308},
        {"iat": 1e308, "exp": 1e308},
        {"nbf": 1e308},
        {
            "iat": int(NOW.timestamp()) + 126
        },  # 60 s of grace before it begins, and 5 s after it ends
        {"nbf": int(NOW.timestamp()) + 126},
        {"tid": LEFT_OUT},
        {"tid": ""},
        {"tid": ANY_TENANT},
        {"tid": "acme/other"},
        {"tid": "x" * 65},
        {"tid": 7},
        {"sub": ""},
        {"sub": " blank-before"},
        {"sub": "blank-behind "},
        {"sub": "x" * 256},
        {"sub": "a\nb"},
        {"sub": "j\u00f6rg@example.org"},
        {"sub": 7},
        {"sub": ["me"]},
        {"role": 7},
        {"sys": 7},
        {"iss": 7},
        {"aud": 7},
        {"jti": 7},
        {"role": LEFT_OUT},
        {"role": "root"},
        {"role": "integration"},  # without a system
        {"sys": "crm:main"},  # a system for a visitor
    ],
)
def test_a_signed_token_that_says_what_cannot_be(
    keys: KeySet, clock: ManualClock, claims: dict[str, Any]
) -> None:
    with pytest.raises(Unauthenticated) as caught:
        TokenVerifier(keys, clock).verify(forged(keys, **claims))
    assert caught.value.reason_name == "TOKEN_INVALID"
    assert not caught.value.temporary  # no time makes it good


@pytest.mark.parametrize("claim", ["iat", "nbf"])
@pytest.mark.parametrize("ahead", [6, 30, 60])
def test_a_clock_that_is_a_minute_ahead_is_forgiven(
    keys: KeySet, clock: ManualClock, claim: str, ahead: int
) -> None:
    claims = {claim: int(NOW.timestamp()) + ahead}
    assert TokenVerifier(keys, clock).verify(forged(keys, **claims)).subject == "me"


@pytest.mark.parametrize("claim", ["iat", "nbf"])
@pytest.mark.parametrize(("ahead", "wait"), [(61, 1), (90, 30), (3660, 3600), (10**9, 3600)])
def test_a_token_that_begins_later_is_told_when_to_come_back(
    keys: KeySet, clock: ManualClock, claim: str, ahead: int, wait: int
) -> None:
    begin = int(NOW.timestamp()) + ahead
    claims = {claim: begin, "exp": begin + 60}
    if claim == "nbf":
        claims["iat"] = begin - 600
    verifier = TokenVerifier(keys, clock)
    for _ in range(2):  # a refusal isn't remembered
        with pytest.raises(Unauthenticated, match=f"not valid yet \\({claim}") as caught:
            verifier.verify(forged(keys, **claims))
        assert caught.value.reason_name == "TOKEN_INVALID"
        assert (caught.value.temporary, caught.value.retry_after) == (True, wait)
    clock.advance(ahead - 60)
    assert verifier.verify(forged(keys, **claims)).subject == "me"


@pytest.mark.parametrize(
    "subject",
    [
        "4711",
        "auth0|5f7c8ec7c33c6c004bbafe82",
        "google-oauth2|103547991597142817347",
        "ana+shop@example.org",
        "q83vEjRWeJA=",
        "users/4711",
        "CORP\\ana",
        "Ana Lopez",
        '{"a": "b"}',
        "a" * 86,
        "~" * 255,
    ],
)
def test_ids_of_sign_in_systems_are_subjects(
    keys: KeySet, clock: ManualClock, subject: str
) -> None:
    token = TokenSigner(keys, clock).mint(tenant="t", role=Role.VISITOR, subject=subject)
    assert TokenVerifier(keys, clock).verify(token).subject == subject


@pytest.mark.parametrize(
    "name",
    [
        "Li\0Na",
        "Li\nNa",
        "\ud800",
        "A\u202egpj",
        "Li\u2028Na",
        "\u2800",
        " ",
        "x" * 129,
        7,
        {},
        None,
    ],
)
def test_a_name_that_cannot_be_kept_is_left_out(
    keys: KeySet, clock: ManualClock, name: Any
) -> None:
    assert TokenVerifier(keys, clock).verify(forged(keys, name=name)).name == ""


@pytest.mark.parametrize(
    ("claims", "kept"),
    [
        ({"email": 7}, None),
        ({"email": "x" * 255}, None),
        ({"email": "ana@example.org\u00a0"}, Profile(email="ana@example.org")),
        ({"email": "ana\n@example.org", "phone_number": "+49 30"}, Profile(mobile="+49 30")),
        ({"phone_number": "+49\n30"}, None),
        ({"phone_number": "+33\u00a06\u00a012"}, Profile(mobile="+33\u00a06\u00a012")),
        ({"phone_number": "\u202a+86 138 0013 8000\u202c"}, Profile(mobile="+86 138 0013 8000")),
        ({"phone_number": "\u202a+49 30\u202c\u00a0"}, Profile(mobile="+49 30")),
        ({"ids": ["crm:main"]}, None),
        ({"ids": {"crm:main": 4711, "crm:b": "1"}}, Profile(ids=(("crm:b", "1"),))),
        ({"ids": {"crm main": "4711"}}, None),
        ({"ids": {"crm:main": ""}}, None),
        ({"ids": {"crm:main": "a\u200cb"}}, Profile(ids=(("crm:main", "a\u200cb"),))),
        # Nobody becomes another visitor by a claim.
        ({"ids": {"visitor": "somebody-else"}}, None),
        (
            {"ids": {f"crm:{number:02}": "1" for number in range(16)}},
            Profile(ids=tuple((f"crm:{number:02}", "1") for number in range(15))),
        ),
    ],
)
def test_what_cannot_be_kept_of_a_profile_is_left_out_and_its_owner_let_in(
    keys: KeySet, clock: ManualClock, claims: dict[str, Any], kept: Profile | None
) -> None:
    assert TokenVerifier(keys, clock).verify(forged(keys, **claims)).profile == kept


def test_what_is_left_out_is_logged_once_without_its_text(
    keys: KeySet, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "_LOGGED", set())
    verifier = TokenVerifier(keys, clock)
    with capture_logs() as logs:
        for number in range(3):
            verifier.verify(forged(keys, sub=f"v{number}", name=f"secret{number}\n"))
    assert [each["event"] for each in logs] == ["token_claim_left_out"]
    assert logs[0]["claim"] == "name"
    assert "secret" not in str(logs)


def test_the_profile_of_others_is_nobodys_business(keys: KeySet, clock: ManualClock) -> None:
    principal = TokenVerifier(keys, clock).verify(forged(keys, role="agent", email="a@b.c"))
    assert principal.profile is None


def test_the_algorithm_is_the_keys(keys: KeySet, clock: ManualClock) -> None:
    verifier = TokenVerifier(keys, clock)
    kid, key = keys.signing()
    public = key.public_key().public_bytes_raw()
    unsigned = jwt.encode(CLAIMS, None, algorithm="none", headers={"kid": kid})
    symmetric = jwt.encode(CLAIMS, public, algorithm="HS256", headers={"kid": kid})
    for token in (
        unsigned,
        symmetric,
        forged(keys, headers={"kid": "other"}),
        forged(keys, headers={}),
    ):
        assert reason(verifier, token) == "TOKEN_INVALID"
    assert reason(verifier, forged(KeySet.generate())) == "TOKEN_INVALID"


def test_keys_rotate_in_the_file(tmp_path: Path, clock: ManualClock) -> None:
    path = tmp_path / "keys.json"
    KeySet.generate().save(path)
    assert path.stat().st_mode & 0o077 == 0
    old = TokenSigner(KeySet.load(path), clock).mint(tenant="t", role=Role.AGENT, subject="a")
    verifier = TokenVerifier(KeySet.load(path), clock)
    signer = TokenSigner(KeySet.load(path), clock)
    verifier.verify(old)

    rotated = KeySet.load(path).rotated()
    rotated.save(path)
    os.utime(path, (1, 1))  # another time than before, whatever the clock's steps
    clock.advance(2)
    new = signer.mint(tenant="t", role=Role.AGENT, subject="a")
    assert jwt.get_unverified_header(new)["kid"] == rotated.signing()[0]
    verifier.verify(new)
    verifier.verify(old)

    # A file that is broken for a moment changes nothing.
    path.write_text("{")
    clock.advance(2)
    verifier.verify(new)

    # The old key is taken out: its tokens go with it, also those that were seen before.
    path.write_text(json.dumps({"keys": rotated.entries[:1]}))
    clock.advance(2)
    verifier.verify(new)
    assert reason(verifier, old) == "TOKEN_INVALID"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"keys": []}',
        '{"keys": [{}]}',
        '{"keys": [{"kid": "a", "kty": "RSA"}]}',
        '{"keys": [{"kid": "a", "kty": "OKP", "crv": "Ed25519", "x": "!"}]}',
    ],
)
def test_a_keys_file_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(KeysError, match="can't read"):
        KeySet.load(path)
    path.write_text(text)
    with pytest.raises(KeysError):
        KeySet.load(path)


def test_who_can_only_verify_signs_nothing(keys: KeySet, clock: ManualClock) -> None:
    (entry,) = keys.entries
    public = KeySet(
        {"keys": [{k: v for k, v in entry.items() if k != "d"} | {"dw_tenants": ["t"]}]}
    )
    token = TokenSigner(keys, clock).mint(tenant="t", role=Role.VISITOR, subject="a")
    assert TokenVerifier(public, clock).verify(token).subject == "a"
    with pytest.raises(KeysError, match="no private key"):
        TokenSigner(public, clock).mint(tenant="t", role=Role.AGENT, subject="a")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
NAMES = [*CLAIMS, "nbf", "jti", "sys", "name", "email", "phone_number", "ids", "kid", "crit"]
SIGNING = KeySet.generate()


@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4))
def test_whatever_a_key_signs_it_is_somebody_or_refused(claims: dict[str, Any]) -> None:
    verifier = TokenVerifier(SIGNING, ManualClock(NOW))
    with contextlib.suppress(Unauthenticated):
        assert verifier.verify(forged(SIGNING, **claims)).tenant
