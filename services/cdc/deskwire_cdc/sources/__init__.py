"""External databases: one port, one package for each kind.

A new kind is a package with a `KIND` beside these, its line below and its value in the contract's SourceKind.
"""

from __future__ import annotations

from typing import Final

from deskwire_cdc.domain.sources import Source, SourceUnusable
from deskwire_cdc.sources import mariadb, sqlite
from deskwire_cdc.sources.port import Reader, ReaderOptions, SourceKind
from deskwire_common.errors import InvalidArgument

__all__ = ["Reader", "ReaderOptions", "SourceKind", "kind_of", "open_reader"]

_KINDS: Final = {kind.name: kind for kind in (mariadb.KIND, sqlite.KIND)}


def kind_of(name: str) -> SourceKind:
    """Return the kind of a name. Raises InvalidArgument for one that isn't captured."""
    kind = _KINDS.get(name)
    if kind is None:
        raise InvalidArgument(f"sources of kind {name!r} can't be captured", field="source.kind")
    return kind


def open_reader(source: Source, options: ReaderOptions) -> Reader:
    """Return the reader for a source; it connects when used. Raises SourceUnusable for an unknown kind."""
    kind = _KINDS.get(source.kind)
    if kind is None:
        raise SourceUnusable("kind", f"Sources of kind {source.kind!r} can't be captured.")
    return kind.reader(source, options)
