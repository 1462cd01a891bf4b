"""The rules of tenants and integration keys: who is admitted at all."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from deskwire.common.v1 import error_reason_pb2 as reasons
from deskwire_chat.domain.agents import (
    Agent,
)
from deskwire_chat.domain.changes import Change, check_version
from deskwire_common.errors import (
    FailedPrecondition,
    NotFound,
    Unauthenticated,
)

SECRET_BYTES: Final = 32
"""How many random bytes the secret of an integration key has."""

_SECRET: Final = re.compile(rf"dwk_([0-9a-f]{{32}})_([0-9a-f]{{{2 * SECRET_BYTES}}})")


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant that was created."""

    tenant_id: str
    display_name: str
    disabled: bool
    version: int
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class IntegrationKey:
    """A key with which an outside system gets tokens."""

    key_id: str
    tenant: str
    system_id: str
    display_name: str
    secret_hash: bytes = field(repr=False)
    revoked: bool
    version: int
    created_at: int
    updated_at: int


SwitchedT = TypeVar("SwitchedT", Agent, Tenant)


def switched(
    thing: SwitchedT, *, disabled: bool, expected_version: int
) -> tuple[SwitchedT, dict[str, Change]]:
    """Disable or enable an agent or a tenant; return it, and the fields that changed.

    Raises VersionMismatch, or FailedPrecondition (INVALID_STATE) when it is in that state already.
    """
    check_version(thing.version, expected_version)
    if thing.disabled is disabled:
        state = "DISABLED" if disabled else "ENABLED"
        raise FailedPrecondition(
            f"it is {state.lower()} already",
            reason=reasons.ERROR_REASON_INVALID_STATE,
            metadata={"state": state},
        )
    after = replace(thing, disabled=disabled, version=thing.version + 1)
    return after, {"disabled": Change(not disabled, disabled)}


def tenant_not_found(tenant_id: str) -> NotFound:
    """Return the error for a tenant that was never created."""
    return NotFound(
        f"no tenant {tenant_id} was created", reason=reasons.ERROR_REASON_TENANT_NOT_FOUND
    )


def secret_text(key_id: str, secret: bytes) -> str:
    """Return the secret of a key as its system keeps it: `dwk_<key>_<secret>`, both in hex."""
    return f"dwk_{key_id.replace('-', '')}_{secret.hex()}"


def read_secret(text: str) -> tuple[str, bytes] | None:
    """Return key_id and secret of a text that `secret_text` made; None for any other text."""
    match = _SECRET.fullmatch(text)
    if match is None:
        return None
    digits = match[1]
    parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
    return "-".join(parts), bytes.fromhex(match[2])


def secret_hash(secret: bytes) -> bytes:
    """Return the hash that is stored for a secret. A plain hash is enough, as nobody can guess 256 random bits."""
    return hashlib.sha256(secret).digest()


def opened(key: IntegrationKey | None, secret: bytes) -> IntegrationKey:
    """Return the key if `secret` is right and it isn't revoked; the time that it takes reveals nothing of the hash.

    Raises Unauthenticated (INTEGRATION_KEY_INVALID), the same error whatever is wrong.
    """
    wanted = key.secret_hash if key is not None else bytes(SECRET_BYTES)
    fits = hmac.compare_digest(wanted, secret_hash(secret))
    if key is None or key.revoked or not fits:
        raise Unauthenticated(
            "the secret isn't that of an integration key, or the key is revoked",
            reason=reasons.ERROR_REASON_INTEGRATION_KEY_INVALID,
        )
    return key


def key_not_found(key_id: str) -> NotFound:
    """Return the error for a key that the caller's tenant doesn't have."""
    return NotFound(
        f"no integration key {key_id}", reason=reasons.ERROR_REASON_INTEGRATION_KEY_NOT_FOUND
    )


def revoked(
    key: IntegrationKey, *, expected_version: int, now: int
) -> tuple[IntegrationKey, dict[str, Change]]:
    """Revoke a key; return it, and the fields that changed.

    Raises VersionMismatch, or FailedPrecondition (INVALID_STATE) when it is revoked already.
    """
    check_version(key.version, expected_version)
    if key.revoked:
        raise FailedPrecondition(
            "the key is revoked already",
            reason=reasons.ERROR_REASON_INVALID_STATE,
            metadata={"state": "REVOKED"},
        )
    after = replace(key, revoked=True, version=key.version + 1, updated_at=now)
    return after, {"revoked": Change(False, True)}
