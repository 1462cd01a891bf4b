"""Pages of list calls: the size of a page, and the tokens that lead to the next one.

A page ends after `page_size` items or some 1 MiB, whichever comes first: gRPC refuses a message over 4 MiB, and such a
refusal hits everybody who shares the call's stream.

A token is opaque to callers, and good only for the list and filters that made it. It is neither a secret nor a
permission: it names a position. Every query that continues from it is limited to the caller's tenant, like that of the
first page.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeAlias, TypeVar

from google.protobuf.message import Message

from deskwire.common.v1 import error_reason_pb2
from deskwire_common.errors import InvalidArgument

PageKey: TypeAlias = tuple[str | int, ...]
"""The sort key of the last row of a page, in the order of the list."""

RowT = TypeVar("RowT")
MessageT = TypeVar("MessageT", bound=Message)

ANSWER_BYTES: Final = 1 << 20
"""Encoded bytes after which a page, a run or a batch ends. One item may be larger: there is always at least one."""
PAGE_SIZE: Final = 50
"""Items on a page when the caller sets no size."""

_CHUNK: Final = 50
"""Rows read at once: few, so that a page that ends by its bytes has read little in vain."""
_ITEM_OVERHEAD: Final = 6  # the tag and the length of an item in its list
_DIGEST_BYTES = 9
_INT64 = 1 << 63
_MAX_TEXT_BYTES = 1024  # an id of 256 characters


def _digest(kind: str, filters: Mapping[str, object]) -> bytes:
    text = json.dumps([kind, filters], sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()[:_DIGEST_BYTES]


def encode_page(kind: str, filters: Mapping[str, object], key: Sequence[str | int]) -> str:
    """Return the token of the page after `key`.

    `kind` names the list (its RPC method); `filters` are all request fields that select rows, in a form that fits into
    JSON. page_size is none of them, so that a caller may change it between pages.
    """
    body = json.dumps(list(key), separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_digest(kind, filters) + body).rstrip(b"=").decode()


def decode_page(
    token: str, kind: str, filters: Mapping[str, object], *, shape: Sequence[type[str | int]]
) -> PageKey | None:
    """Return the key in `token`, or None for the empty token (the first page).

    `shape` is the type of each part of the key. Anyone can make a token (it is not signed), so the key has only values
    that a database column can be compared with: integers of 64 bits, and texts of up to 1,024 bytes that are valid
    Unicode without NUL. Raises InvalidArgument with INVALID_PAGE_TOKEN for a token that `encode_page` did not make with
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


class ListRequest(Protocol):
    """The request of a list call."""

    @property
    def page_size(self) -> int: ...

    @property
    def page_token(self) -> str: ...


def fit(items: Iterable[MessageT], limit: int = ANSWER_BYTES) -> list[MessageT]:
    """Return the first items, at least one, that fit into `limit` encoded bytes of an answer.

    Later items are not taken from `items`.
    """
    fitting: list[MessageT] = []
    for item in items:
        limit -= item.ByteSize() + _ITEM_OVERHEAD
        if limit < 0 and fitting:
            break
        fitting.append(item)
    return fitting


async def page(
    request: ListRequest,
    kind: str,
    filters: Mapping[str, object],
    *,
    shape: Sequence[type[str | int]],
    read: Callable[[PageKey | None, int], Awaitable[Sequence[RowT]]],
    key: Callable[[RowT], PageKey],
    view: Callable[[RowT], MessageT | None],
    default_size: int = PAGE_SIZE,
) -> tuple[list[MessageT], str]:
    """Return one page of a list and its next_page_token, which is empty on the last page.

    `kind`, `filters` and `shape` are those of `encode_page` and `decode_page`. `read(key, limit)` returns up to `limit`
    rows after a key (None: from the start); `key` is a row's own; `view` is a row as callers see it, None when it is
    left out. Raises InvalidArgument (INVALID_PAGE_TOKEN).
    """
    after = decode_page(request.page_token, kind, filters, shape=shape)
    size = request.page_size or default_size
    items: list[MessageT] = []
    taken, room = 0, ANSWER_BYTES
    while True:
        wanted = min(size - taken, _CHUNK)
        rows = await read(after, wanted + 1)
        for row in rows[:wanted]:
            item = view(row)
            if item is not None:
                room -= item.ByteSize() + _ITEM_OVERHEAD
                if room < 0 and items:
                    return items, encode_page(kind, filters, after or ())
                items.append(item)
            after = key(row)
        taken += wanted
        if len(rows) <= wanted:
            return items, ""
        if taken >= size:
            return items, encode_page(kind, filters, after or ())
