"""Readers of external databases: one contract, one module per kind."""

from __future__ import annotations

from deskwire_cdc.domain import Kind, Source
from deskwire_cdc.sources.base import Reader, ReaderOptions
from deskwire_cdc.sources.files import Files
from deskwire_cdc.sources.mariadb import MariadbReader
from deskwire_cdc.sources.sqlite import SqliteReader

__all__ = ["Files", "Reader", "ReaderOptions", "open_reader"]


def open_reader(source: Source, options: ReaderOptions) -> Reader:
    """The reader for a source's kind; connects only when it is used."""
    if source.kind is Kind.SQLITE:
        return SqliteReader(source, options)
    return MariadbReader(source, options)
