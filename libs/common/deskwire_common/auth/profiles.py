"""What a token says of its holder beside who they are: a name, an e-mail address, a phone number, ids elsewhere.

None of it decides who is let in. So what can't be kept is left out, each by itself, and its owner comes in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deskwire_common import texts
from deskwire_common.auth.principals import (
    MAX_IDS,
    Profile,
    email_fault,
    id_fault,
    mobile_fault,
    name_fault,
)
from deskwire_common.logging import get_logger

_LOGGED: set[tuple[str, str]] = set()
"""What this process has logged: the claim and why, never what was in it."""


def profile_of(claims: Mapping[str, Any], *, visitor: bool) -> tuple[str, Profile | None]:
    """Return `name`, and of a visitor `email` and `phone_number` (OpenID Connect Core, 5.1) and `ids`.

    `ids` is an object, system to id. What can't be kept is left out, and logged once by its kind.
    """
    name = _text(claims, "name", name_fault)
    if not visitor:
        return name, None
    email = _text(claims, "email", email_fault)
    mobile = _text(claims, "phone_number", mobile_fault, texts.unwrapped)
    ids = _ids(claims.get("ids", {}))
    return name, Profile(email, mobile, ids) if email or mobile or ids else None


def _text(
    claims: Mapping[str, Any],
    claim: str,
    fault: Callable[[str], str],
    clean: Callable[[str], str] = texts.trimmed,
) -> str:
    value = claims.get(claim, "")
    if not isinstance(value, str):
        return _left_out(claim, "is not text")
    kept = clean(value)
    why = fault(kept)
    return _left_out(claim, why) if why else kept


def _ids(found: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(found, dict):
        _left_out("ids", "is not an object")
        return ()
    kept = []
    for system, value in sorted(found.items()):
        trimmed = texts.trimmed(value) if isinstance(value, str) else None
        why = "is not text" if trimmed is None else id_fault(system, trimmed)
        if why:
            _left_out("ids", why)
        elif trimmed is not None:
            kept.append((system, trimmed))
    if len(kept) > MAX_IDS:
        _left_out("ids", f"has more than {MAX_IDS} entries")
    return tuple(kept[:MAX_IDS])


def _left_out(claim: str, why: str) -> str:
    if (claim, why) not in _LOGGED:
        _LOGGED.add((claim, why))
        get_logger().warning("token_claim_left_out", claim=claim, reason=why)
    return ""
