"""The lines of a file: plain or gzip by content, with or without a byte order mark, each bounded in bytes."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, cast

from deskwire_cli.machine.problem import Problem

LINE_BYTES: Final = 16 * 1024 * 1024
"""The most bytes of a line: about 500 of the longest texts, or 100,000 usual ones. A longer line is never held."""

_GZIP: Final = b"\x1f\x8b"
_BOM: Final = b"\xef\xbb\xbf"
_SKIP: Final = 1024 * 1024

Seen = Callable[[int], None]
"""Takes how many bytes of the file have been read so far."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line that isn't blank, and its number from 1; `data` is None when it is longer than LINE_BYTES."""

    number: int
    data: bytes | None


def size_of(path: Path) -> int:
    """Return how many bytes a file has. Raises Problem unless it is a regular file, as it is read more than once."""
    try:
        if not path.is_file():
            raise Problem(f"can't read {path}: it must be a file, as it is read more than once")
        return path.stat().st_size
    except OSError as error:
        raise Problem(f"can't read {path}: {error.strerror or error}") from None


def lines_of(path: Path, seen: Seen = lambda _bytes: None) -> Iterator[Line]:
    """Yield the lines that aren't blank, without ends. Raises Problem for a file that can't be read or is broken.

    A gzip file whose end is missing or whose checksum is wrong is refused whole: nothing says what else is wrong in it.
    """
    try:
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == _GZIP
            raw.seek(0)
            # A GzipFile reads several members in a row, as `cat a.gz b.gz` makes them.
            stream = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if is_gzip else raw
            for line in _lines(stream):
                seen(raw.tell())
                yield line
    except OSError as error:
        damage = "it is damaged" if isinstance(error, gzip.BadGzipFile) else error.strerror
        raise Problem(f"can't read {path}: {damage or error}") from None
    except (EOFError, zlib.error):
        raise Problem(f"can't read {path}: it is damaged, or its end is missing") from None


def _lines(stream: IO[bytes]) -> Iterator[Line]:
    number = 0
    while data := stream.readline(LINE_BYTES + 1):
        number += 1
        if number == 1:
            data = data.removeprefix(_BOM)
        if len(data) > LINE_BYTES:
            while data and not data.endswith(b"\n"):
                data = stream.readline(_SKIP)
            yield Line(number, None)
        elif data := data.strip():
            yield Line(number, data)
