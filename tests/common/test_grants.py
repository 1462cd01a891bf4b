"""What a key of the keys file may sign, and that nothing else is believed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
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
    PUBLIC_KEY_LIFETIME,
    KeysError,
    KeySet,
    Role,
    TokenSigner,
    TokenVerifier,
)
from deskwire_common.clock import ManualClock
from deskwire_common.errors import Unauthenticated

NOW = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
SUITE = KeySet.generate()
WEBSITE = KeySet.generate()
WEB_ENTRY = {k: v for k, v in WEBSITE.entries[0].items() if k != "d"} | {"kid": "web"}
TENANTS = ("a", "b", ANY_TENANT)


def public(**members: Any) -> dict[str, Any]:
    """The website's key without its private part, with these limits."""
    return WEB_ENTRY | members


def both(entry: dict[str, Any]) -> KeySet:
    """The suite's key and another."""
    return KeySet({"keys": [*SUITE.entries, entry]})


def token(role: str = "visitor", tenant: str = "a", lifetime: float = 3600, **claims: Any) -> str:
    """What the website's backend signs, whatever it says."""
    wanted: dict[str, Any] = {
        "iss": "deskwire",
        "aud": "deskwire",
        "sub": "me",
        "tid": tenant,
        "role": role,
        "iat": NOW,
        "exp": NOW + lifetime,
    }
    if role == "integration":
        wanted["sys"] = "crm:main"
    _, key = WEBSITE.signing()
    return jwt.encode(wanted | claims, key, algorithm=ALGORITHM, headers={"kid": "web"})


def answer(keys: KeySet, text: str) -> str:
    """Nothing when the token is taken, else the reason."""
    try:
        TokenVerifier(keys, ManualClock(datetime.fromtimestamp(NOW, UTC))).verify(text)
    except Unauthenticated as error:
        return error.reason_name
    return ""


def may_be(role: str, tenant: str) -> bool:
    """Whether a token with that role and tenant is one at all."""
    return tenant != ANY_TENANT or role in {"service", "operator"}


def test_a_website_signs_its_own_visitors_and_nobody_else() -> None:
    keys = both(public(dw_tenants=["a"]))
    for role, tenant in itertools.product(Role, TENANTS):
        good = role is Role.VISITOR and tenant == "a"
        assert answer(keys, token(role.value, tenant)) == ("" if good else "TOKEN_INVALID")


def test_a_public_key_that_names_no_tenant_signs_nothing_and_disturbs_nobody() -> None:
    keys = both(public())
    for role, tenant in itertools.product(Role, TENANTS):
        assert answer(keys, token(role.value, tenant)) == "TOKEN_INVALID"
    mine = TokenSigner(keys).mint(tenant="a", role=Role.OPERATOR, subject="olga")
    with capture_logs() as logs:
        assert TokenVerifier(keys).verify(mine).subject == "olga"
    (line,) = [each for each in logs if each["event"] == "key_signs_nothing"]
    assert (line["kid"], line["reason"]) == ("web", "it names no tenant (dw_tenants)")


@given(
    st.sets(st.sampled_from(list(Role))),
    st.sets(st.sampled_from(TENANTS)),
    st.booleans(),
    st.integers(1, MAX_LIFETIME),
)
def test_roles_and_tenants_are_those_of_the_key(
    roles: set[Role], tenants: set[str], private: bool, limit: int
) -> None:
    members = {
        "dw_roles": [role.value for role in roles],
        "dw_tenants": list(tenants),
        "dw_max_lifetime": limit,
    }
    entry = (WEBSITE.entries[0] | {"kid": "web"} if private else public()) | members
    keys = both(entry)
    for role, tenant in itertools.product(Role, TENANTS):
        good = role in roles and (tenant in tenants or ANY_TENANT in tenants)
        good = good and may_be(role.value, tenant)
        for lifetime, short in ((limit, True), (limit + 0.5, True), (limit + 1, False)):
            expected = "" if good and short else "TOKEN_INVALID"
            assert answer(keys, token(role.value, tenant, lifetime)) == expected


@pytest.mark.parametrize(
    ("entry", "limit"),
    [
        (public(dw_tenants=["a"]), PUBLIC_KEY_LIFETIME),
        (public(dw_tenants=["a"], dw_max_lifetime=60), 60),
        (WEBSITE.entries[0] | {"kid": "web"}, MAX_LIFETIME),
    ],
)
def test_a_token_that_lives_too_long(entry: dict[str, Any], limit: int) -> None:
    keys = both(entry)
    assert answer(keys, token(lifetime=limit)) == ""
    for lifetime in (limit + 1, 10**9, 10**18, 10**308):
        assert answer(keys, token(lifetime=lifetime)) == "TOKEN_INVALID"
    assert answer(keys, token(lifetime=10, iat=NOW - limit)) == "TOKEN_INVALID"


def test_the_refusal_says_what_to_do() -> None:
    keys = both(public(dw_tenants=["a", "b"], dw_max_lifetime=60))
    for text, told in (
        (token("operator"), "key web, which may not sign role operator, only visitor"),
        (token(tenant="c"), "key web, which may not sign tenant c, only a, b"),
        (token(lifetime=61), "key web, which may not sign for longer than 60 seconds"),
    ):
        with pytest.raises(Unauthenticated, match=told) as caught:
            TokenVerifier(keys, ManualClock(datetime.fromtimestamp(NOW, UTC))).verify(text)
        assert "sign another token" in caught.value.message


def test_a_private_key_is_bound_by_its_limits_too() -> None:
    limits = {"dw_roles": ["agent"], "dw_tenants": ["a"], "dw_max_lifetime": 600}
    keys = KeySet({"keys": [WEBSITE.entries[0] | limits]})
    signer = TokenSigner(keys)
    signer.mint(tenant="a", role=Role.AGENT, subject="alice", ttl=600)
    wrong: list[Mapping[str, Any]] = [
        {"role": Role.OPERATOR},
        {"tenant": "b"},
        {"ttl": 601},
        {"ttl": float("inf")},
        {"ttl": float("nan")},
    ]
    for each in wrong:
        with pytest.raises(ValueError, match="may not sign"):
            signer.mint(**{"tenant": "a", "role": Role.AGENT, "subject": "x", "ttl": 600, **each})
    rotated = keys.rotated()
    assert rotated.signing_key().kid != keys.signing_key().kid
    assert rotated.signing_key().grant == keys.signing_key().grant


def test_service_tokens_keep_the_limit_of_their_key() -> None:
    clock = ManualClock(datetime.fromtimestamp(NOW, UTC))
    keys = KeySet({"keys": [WEBSITE.entries[0] | {"dw_max_lifetime": 60}]})
    signer, verifier = TokenSigner(keys, clock), TokenVerifier(keys, clock)
    first = signer.service_token()
    assert verifier.verify(first).role is Role.SERVICE
    clock.advance(31)
    assert signer.service_token() != first


def test_a_reused_token_is_one_of_its_holder_and_not_of_keys_that_are_gone(tmp_path: Path) -> None:
    file, clock = tmp_path / "keys.json", ManualClock(datetime.fromtimestamp(NOW, UTC))
    KeySet.generate().save(file)
    keys = KeySet.load(file)
    signer, verifier = TokenSigner(keys, clock), TokenVerifier(keys, clock)

    def token(tenant: str, system: str) -> str:
        return signer.reused_token(
            tenant=tenant, role=Role.INTEGRATION, subject="cdc", system=system
        )

    first = token("a", "crm:main")
    assert token("a", "crm:main") == first
    for tenant, system in (("b", "crm:main"), ("a", "crm:other")):
        principal = verifier.verify(token(tenant, system))
        assert (principal.tenant, principal.system) == (tenant, system)
    KeySet.generate().save(file)
    clock.advance(31)
    renewed = token("a", "crm:main")
    assert renewed != first
    assert verifier.verify(renewed).system == "crm:main"


@pytest.mark.parametrize(
    "members",
    [
        {"dw_role": ["visitor"]},
        {"dw_": None},
        *({"dw_roles": value} for value in (None, "visitor", 7, ["root"], [None], [["visitor"]])),
        *({"dw_tenants": value} for value in (None, "a", {"a": 1}, ["a b"], [""], ["**"], [7])),
        *(
            {"dw_max_lifetime": value}
            for value in (None, 0, -1, 1.5, True, "60", MAX_LIFETIME + 1, 10**30, float("nan"))
        ),
    ],
)
def test_limits_that_cannot_be_read_are_no_limits_to_guess(members: dict[str, Any]) -> None:
    with pytest.raises(KeysError, match="key web: dw_"):
        both(public(dw_tenants=["a"]) | members)


def test_two_keys_of_one_id() -> None:
    with pytest.raises(KeysError, match="two keys of the keys file have the kid web"):
        KeySet({"keys": [public(dw_tenants=["a"]), public(dw_tenants=["b"])]})


def test_limits_follow_the_file(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys.json", ManualClock(datetime.fromtimestamp(NOW, UTC))
    both(public(dw_tenants=["a"])).save(path)
    verifier = TokenVerifier(KeySet.load(path), clock)
    text = token()
    assert verifier.verify(text).tenant == "a"

    # What can't be read changes nothing, and is told once.
    path.write_text(json.dumps({"keys": [*SUITE.entries, public(dw_tenants="b")]}))
    with capture_logs() as logs:
        for _ in range(3):
            clock.advance(2)
            verifier.verify(text)
    assert [each["event"] for each in logs] == ["keys_file_refused"]
    assert "key web: dw_tenants is not a list" in logs[0]["reason"]

    # A key that may sign less takes its tokens with it, also those that were seen before.
    both(public(dw_tenants=["b"])).save(path)
    clock.advance(2)
    with pytest.raises(Unauthenticated) as caught:
        verifier.verify(text)
    assert caught.value.reason_name == "TOKEN_INVALID"
    verifier.verify(token(tenant="b"))
