"""Checks of requests that the contract's annotations can't say."""

from __future__ import annotations

from deskwire_common.errors import InvalidArgument


def check_text(name: str, text: str) -> None:
    """Raises InvalidArgument for a text that PostgreSQL can't store."""
    if "\x00" in text:
        raise InvalidArgument(f"{name} has a NUL character", field=name)


def check_ascii(name: str, text: str) -> None:
    """Raises InvalidArgument unless it is printable ASCII."""
    if not is_ascii(text):
        raise InvalidArgument(f"{name} must be printable ASCII", field=name)


def is_ascii(text: str) -> bool:
    """Whether a text is printable ASCII, as the columns of ids are."""
    return text.isascii() and text.isprintable()
