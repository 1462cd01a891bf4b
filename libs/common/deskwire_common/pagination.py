"""Page tokens of list calls: opaque to callers, and good only for the list and filters that made them.

A token is not a secret and not a permission: it names a position. Every query that continues from it is limited to
the caller's tenant as the first page was.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from deskwire.common.v1 import error_reason_pb2
from deskwire_common.errors import InvalidArgument

PageKey: TypeAlias = tuple[str | int, ...]
"""The sort key of the last row of a page, in the order of the list."""

_DIGEST_BYTES = 9
_INT64 = 1 << 63
_MAX_TEXT_BYTES = 1024  # an id of 256 characters


def _digest(kind: str, filters: Mapping[str, object]) -> bytes:
    text = json.dumps([kind, filters], sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()[:_DIGEST_BYTES]


def encode_page(kind: str, filters: Mapping[str, object], key: Sequence[str | int]) -> str:
    """Return the token of the page after `key`.

    `kind` names the list (its RPC method), `filters` are all request fields that select rows, in a form that JSON can
    say; page_size is none of them, so that a caller may change it between pages.
    """
    body = json.dumps(list(key), separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_digest(kind, filters) + body).rstrip(b"=").decode()


def decode_page(
    token: str, kind: str, filters: Mapping[str, object], *, shape: Sequence[type[str | int]]
) -> PageKey | None:
    """Return the key in `token`, or None for the empty token (the first page).

    `shape` is the type of each part of the key. Anyone can make a token (it is not signed), so what is returned is
    what a database column can be compared with: integers of 64 bits, and texts of up to 1,024 bytes that are valid
    Unicode without NUL. Raises InvalidArgument with INVALID_PAGE_TOKEN for what `encode_page` did not make with
    the same `kind` and `filters`.
    """
    if not token:
        return None
    try:
        raw = base64.b64decode(
            token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True
        )
        if raw[:_DIGEST_BYTES] != _digest(kind, filters):
            raise ValueError
        key = json.loads(raw[_DIGEST_BYTES:])
        if not isinstance(key, list) or [type(part) for part in key] != list(shape):
            raise ValueError
        if not all(map(_is_comparable, key)):
            raise ValueError
    except (ValueError, binascii.Error, RecursionError) as error:
        raise InvalidArgument(
            "page_token was not made by this list with these filters; start again without a token",
            reason=error_reason_pb2.ERROR_REASON_INVALID_PAGE_TOKEN,
            field="page_token",
        ) from error
    return tuple(key)


def _is_comparable(part: str | int) -> bool:
    """Whether a database can compare a column with it. Raises UnicodeEncodeError for lone surrogates."""
    if isinstance(part, int):
        return -_INT64 <= part < _INT64
    return len(part.encode()) <= _MAX_TEXT_BYTES and "\0" not in part
