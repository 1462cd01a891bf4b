"""Secrets at rest: encrypted with a key outside the database, so that a copy of the database gives none away.

AES-256-GCM (NIST SP 800-38D). A sealed text is bound to what it belongs to: moved to another row, it doesn't open.
The keys are the lines of a file, each 32 bytes in base64. The first one seals, all of them open: a new key is put in
front of the old one, which goes when nothing is sealed with it any more.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_SEALED: Final = "sealed:"
_PLAIN: Final = "plain:"


class SealBroken(Exception):
    """A sealed text can't be opened: its key is missing, or it isn't what was sealed. For operators."""


class Sealer:
    """Seals and opens texts. Without keys they stay as they are; keys that come later open these, too."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        """Raises ValueError for a key that hasn't 32 bytes."""
        if any(len(key) != _KEY_BYTES for key in keys):
            raise ValueError(f"a sealing key has {_KEY_BYTES} bytes")
        self._keys = [AESGCM(key) for key in keys]

    def seal(self, text: str, about: str) -> str:
        """The text as it may be stored; `about` names what it belongs to, and is needed to open it."""
        if not self._keys:
            return _PLAIN + text
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._keys[0].encrypt(nonce, text.encode(), about.encode())
        return _SEALED + base64.b64encode(nonce + sealed).decode()

    def open(self, stored: str, about: str) -> str:
        """The text that was sealed. Raises SealBroken."""
        if stored.startswith(_PLAIN):
            return stored.removeprefix(_PLAIN)
        try:
            data = base64.b64decode(stored.removeprefix(_SEALED), validate=True)
        except binascii.Error as error:
            raise SealBroken(f"the secret of {about} is no sealed text") from error
        for key in self._keys:
            try:
                return key.decrypt(
                    data[:_NONCE_BYTES], data[_NONCE_BYTES:], about.encode()
                ).decode()
            except (InvalidTag, ValueError):
                continue
        raise SealBroken(f"no key opens the secret of {about}")


def load_sealer(file: Path | None) -> Sealer:
    """The sealer of a file with keys; without a file nothing is encrypted. Raises ValueError that says why."""
    if file is None:
        return Sealer()
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
        keys = [base64.b64decode(line, validate=True) for line in lines if line]
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{file}: each line is a key in base64") from None
    if not keys:
        raise ValueError(f"{file} has no key")
    return Sealer(keys)
