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
    token: str, kind: str, filters: Mapping[str, object], *, length: int | None = None
) -> PageKey | None:
    """Return the key in `token`, or None for the empty token (the first page).

    `length` is how many parts the key has, when given. Raises InvalidArgument with INVALID_PAGE_TOKEN for what
    `encode_page` did not make with the same `kind` and `filters`.
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
        if not isinstance(key, list) or not all(type(part) in {str, int} for part in key):
            raise ValueError
        if length is not None and len(key) != length:
            raise ValueError
    except (ValueError, binascii.Error, RecursionError) as error:
        raise InvalidArgument(
            "page_token was not made by this list with these filters; start again without a token",
            reason=error_reason_pb2.ERROR_REASON_INVALID_PAGE_TOKEN,
            field="page_token",
        ) from error
    return tuple(key)
