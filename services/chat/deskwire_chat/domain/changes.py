"""Rules for every kind of object: a field's change, and the version that the caller expects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deskwire_common.errors import (
    VersionMismatch,
)


@dataclass(frozen=True, slots=True)
class Change:
    """A field's value before and after; None is no value."""

    before: Any
    after: Any


def check_version(current: int, expected: int) -> None:
    """Raise VersionMismatch unless `expected` is 0 or the current version."""
    if expected and expected != current:
        raise VersionMismatch(current=current, expected=expected)
