"""Secrets that registrations name and the hub reads: from its environment and from files, by the operator's rules.

Rules are a list with commas, each `TENANT=REFERENCE`:

- `shop=env:CRM_PASSWORD`: this variable of the hub's environment, for the adapters of tenant `shop`;
- `shop=file:/run/secrets/crm`: this file;
- `shop=file:/run/secrets/shop/`: all files in this folder.

A tenant could send a secret to any target that it may have, so none is allowed for all tenants together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MAX_BYTES: Final = 65_536


class SecretRefused(Exception):
    """No rule allows the reference, or nothing is there. The message is the operator's, `name` the tenant's."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True, slots=True)
class SecretRule:
    """A reference that a tenant may use; one of a folder ends with a slash."""

    tenant: str
    reference: str

    def allows(self, tenant: str, reference: str) -> bool:
        """Whether a tenant may use a reference. Reads links of the file system."""
        if tenant != self.tenant:
            return False
        if not self.reference.endswith("/"):
            return reference == self.reference
        kind, _, path = reference.partition(":")
        folder = Path(self.reference.removeprefix("file:")).resolve()
        return kind == "file" and folder in Path(path).resolve().parents


def parse_secret_rules(text: str) -> tuple[SecretRule, ...]:
    """The rules of a setting. Raises ValueError that says what is wrong."""
    return tuple(_rule(part.strip()) for part in text.split(",") if part.strip())


def _rule(text: str) -> SecretRule:
    tenant, _, reference = text.partition("=")
    kind, _, name = reference.partition(":")
    if not tenant or not name or kind not in {"env", "file"} or (kind == "env" and "/" in name):
        raise ValueError(f"{text!r} is not TENANT=env:VARIABLE or TENANT=file:/path")
    if kind == "file" and not name.startswith("/"):
        raise ValueError(f"{text!r}: write the whole path, from /")
    return SecretRule(tenant, reference)


@dataclass(frozen=True, slots=True)
class SecretRefs:
    """Reads secrets by rules."""

    rules: tuple[SecretRule, ...]

    def read(self, tenant: str, references: Mapping[str, str]) -> dict[str, str]:
        """The values of references, by name. Blocks. Raises SecretRefused."""
        return {name: self._value(tenant, name, each) for name, each in references.items()}

    def _value(self, tenant: str, name: str, reference: str) -> str:
        if not any(rule.allows(tenant, reference) for rule in self.rules):
            raise SecretRefused(name, f"no rule allows {reference} for tenant {tenant}")
        kind, _, where = reference.partition(":")
        if kind == "env":
            value = os.environ.get(where)
            if value is None:
                raise SecretRefused(name, f"{reference} isn't set")
            return value
        try:
            with Path(where).open("rb") as file:
                found = file.read(_MAX_BYTES + 1)
            text = found.decode()
        except (OSError, UnicodeDecodeError) as error:
            raise SecretRefused(name, f"{reference} can't be read: {error}") from error
        if len(found) > _MAX_BYTES:
            raise SecretRefused(name, f"{reference} has more than {_MAX_BYTES} bytes")
        # Editors and `echo` end a file with a newline, which is no part of a secret.
        return text.removesuffix("\n").removesuffix("\r")
