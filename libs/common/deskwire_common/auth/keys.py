"""The keys file: a JWK set that says who may sign what, and that every process follows."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from jwt.algorithms import OKPAlgorithm

from deskwire_common.auth.grants import MEMBERS, Grant
from deskwire_common.logging import get_logger

ALGORITHM: Final = "EdDSA"


class KeysError(ValueError):
    """The keys file can't be used; the message says why."""


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A key of the set: the part that checks its signatures, and what it may sign."""

    kid: str
    public: Ed25519PublicKey
    grant: Grant
    private: Ed25519PrivateKey | None = None


class KeySet:
    """Signing and verifying keys. `load`ed from a file it follows the file: rotation needs no restart."""

    def __init__(self, document: Mapping[str, Any], path: Path | None = None) -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._generation = 0
        self._adopt(document)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KeySet:
        """Read a JWK set. Raises KeysError when there is none, or no Ed25519 key in it. Blocks briefly."""
        file = Path(path)
        seen, document = _read(file)
        keys = cls(document, file)
        keys._seen = seen
        return keys

    @classmethod
    def generate(cls) -> KeySet:
        """Make a set with one new key."""
        jwk = json.loads(OKPAlgorithm.to_jwk(Ed25519PrivateKey.generate()))
        return cls({"keys": [{**jwk, "kid": key_id(jwk), "alg": ALGORITHM, "use": "sig"}]})

    def rotated(self) -> KeySet:
        """Return a set that signs with a new key and still verifies with all of these.

        The new key may sign what the present signing key may.
        """
        (fresh,) = KeySet.generate().entries
        signing = next((entry for entry in self.entries if entry.get("d")), {})
        limits: dict[str, Any] = {
            member: signing[member] for member in MEMBERS if member in signing
        }
        return self.with_entries([{**fresh, **limits}, *self.entries])

    def with_entries(self, entries: list[dict[str, Any]]) -> KeySet:
        """Return a set of these JWKs; other members of the document stay. Raises KeysError."""
        return KeySet({**self._document, "keys": entries})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the set, private parts included, readable by the owner only; replaces the file whole. Blocks.

        If the path is a link, its target is replaced: services may follow the target by another path.
        """
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(self._document, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    @property
    def generation(self) -> int:
        """Grows with every change of the keys."""
        return self._generation

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The JWKs of the set, private parts included."""
        return list(self._document["keys"])

    @property
    def verifying_keys(self) -> list[VerifyingKey]:
        """The keys in the order of the file."""
        return list(self._keys.values())

    def verifying(self, kid: str) -> VerifyingKey | None:
        """Return the key of that id, or None."""
        return self._keys.get(kid)

    def signing_key(self) -> VerifyingKey:
        """Return the first key with a private part. Raises KeysError when the set can only verify."""
        if self._signing is None:
            raise KeysError("the keys file has no private key: this process can't sign tokens")
        return self._signing

    def signing(self) -> tuple[str, Ed25519PrivateKey]:
        """Return the id and the private part of the signing key. Raises KeysError when the set can only verify."""
        key = self.signing_key()
        assert key.private is not None  # noqa: S101 - it is what makes it the signing key
        return key.kid, key.private

    def secrets(self, purpose: str) -> list[bytes]:
        """Return keys for HMACs of one purpose, derived from the private keys: sign with the first, take all.

        Processes with the same keys file have the same, and they rotate with it. Raises KeysError without a private
        key.
        """
        private = [str(entry["d"]) for entry in self.entries if entry.get("d")]
        if not private:
            raise KeysError("the keys file has no private key: this process can't sign URLs")
        return [
            hmac.digest(each.encode(), f"deskwire {purpose}".encode(), "sha256") for each in private
        ]

    def refresh(self) -> None:
        """Read the file again if it changed. While the file is broken, the old keys stay."""
        if self._path is None:
            return
        seen = _stamp(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._seen, document = _read(self._path)
            self._adopt(document)
        except KeysError as error:
            # Log it once for each state of the file: somebody expects a limit that isn't in force.
            get_logger().warning("keys_file_refused", reason=str(error))

    def _adopt(self, document: Mapping[str, Any]) -> None:
        entries = document.get("keys")
        if not isinstance(entries, list) or not entries:
            raise KeysError('the keys file is not a JWK set: {"keys": [...]} expected')
        keys: dict[str, VerifyingKey] = {}
        for entry in entries:
            key = read_key(entry)
            if key.kid in keys:
                raise KeysError(f"two keys of the keys file have the kid {key.kid}")
            keys[key.kid] = key
        self._document = document
        self._keys = keys
        self._signing = next((key for key in keys.values() if key.private is not None), None)
        self._generation += 1


def key_id(jwk: Mapping[str, Any]) -> str:
    """Return the id that a JWK without one gets here."""
    return hashlib.sha256(str(jwk.get("x")).encode(errors="replace")).hexdigest()[:16]


def read_key(entry: Any) -> VerifyingKey:
    """Return the key that a JWK describes. Raises KeysError that names it."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str) or not entry["kid"]:
        raise KeysError("a key of the keys file has no kid")
    kid = entry["kid"]
    if entry.get("kty") != "OKP" or entry.get("crv") != "Ed25519":
        raise KeysError(f"key {kid}: only Ed25519 keys (kty OKP) are used here")
    try:
        key = OKPAlgorithm.from_jwk(entry)
        grant = Grant.of_jwk(entry, private=isinstance(key, Ed25519PrivateKey))
    except (jwt.InvalidKeyError, ValueError, TypeError) as error:
        raise KeysError(f"key {kid}: {error}") from None
    if isinstance(key, Ed25519PrivateKey):
        return VerifyingKey(kid, key.public_key(), grant, key)
    if isinstance(key, Ed25519PublicKey):
        return VerifyingKey(kid, key, grant)
    raise KeysError(f"key {kid}: only Ed25519 keys (kty OKP) are used here")


def _stamp(path: Path) -> tuple[int, ...]:
    """A state of the file that differs after each write or replacement; empty while there is no file."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ino, found.st_size


def _read(path: Path) -> tuple[tuple[int, ...], dict[str, Any]]:
    stamp = _stamp(path)
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise KeysError(f"can't read the keys file {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise KeysError(f"the keys file {path} is not JSON") from None
    if not isinstance(document, dict):
        raise KeysError(f"the keys file {path} is not a JWK set")
    return stamp, document
