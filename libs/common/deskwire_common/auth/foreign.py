"""Public keys from outside the suite: a JWK, a JWK set of one, or PEM."""

from __future__ import annotations

import json
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import OKPAlgorithm

from deskwire_common.auth.keys import KeysError, key_id, read_key

PUBLIC_MEMBERS: Final[tuple[str, ...]] = ("kty", "crv", "x", "kid")


def public_jwk(text: str, kid: str = "") -> dict[str, Any]:
    """Return the public JWK in a text, without its private part and without limits.

    Its id is `kid`, else the JWK's own, else one derived from the key. Raises KeysError that says what to bring
    instead.
    """
    found = _of_pem(text) if "-----BEGIN" in text else _of_json(text)
    entry: dict[str, Any] = {name: found[name] for name in PUBLIC_MEMBERS if name in found}
    if kid or "kid" not in entry:
        entry["kid"] = kid or key_id(entry)
    read_key(entry)
    return entry


def _of_pem(text: str) -> dict[str, Any]:
    if "PRIVATE KEY" in text:
        raise KeysError(
            "this is a private key, which stays with its owner: `openssl pkey -pubout` gives the public one"
        )
    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise KeysError("the key is not PEM that can be read") from None
    if not isinstance(key, Ed25519PublicKey):
        raise KeysError("only Ed25519 keys are used here: `openssl genpkey -algorithm ed25519`")
    entry: dict[str, Any] = json.loads(OKPAlgorithm.to_jwk(key))
    return {name: entry[name] for name in PUBLIC_MEMBERS if name in entry}


def _of_json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise KeysError("the key is neither a JWK (JSON) nor PEM") from None
    if isinstance(found, dict) and isinstance(found.get("keys"), list):
        if len(found["keys"]) != 1:
            raise KeysError(f"a JWK set of {len(found['keys'])} keys: bring them one by one")
        (found,) = found["keys"]
    if not isinstance(found, dict):
        raise KeysError("the key is not a JWK: a JSON object with kty, crv and x")
    return found
