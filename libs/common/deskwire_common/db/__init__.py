"""Databases: one way to write, read, retry and lead on SQLite, PostgreSQL and MariaDB/MySQL.

The rules of docs/architecture.md that live here: units of work roll back unless they are committed; every
write transaction of a SQLite file goes through one connection (`BEGIN IMMEDIATE`, WAL, `synchronous=FULL`);
isolation is READ COMMITTED elsewhere; times are BIGINT microseconds; ids compare by their bytes.
"""

from __future__ import annotations

from deskwire_common.db.database import MAX_ATTEMPTS, Database, file_of
from deskwire_common.db.durability import durability, is_durable
from deskwire_common.db.engines import DRIVERS, normalize_url
from deskwire_common.db.errors import (
    AWAY,
    CommitInDoubt,
    ConnectionLost,
    WriteConflict,
    is_conflict,
    is_connection_lost,
    is_division_by_zero,
    is_unique_violation,
    translate_errors,
)
from deskwire_common.db.single import Statements
from deskwire_common.db.statements import array, insert_if_absent, upsert
from deskwire_common.db.types import (
    AutoId,
    Blob,
    Id,
    LongText,
    Micros,
    Name,
    Subject,
    UInt32,
    ascii_text,
    binary_text,
    metadata,
)
from deskwire_common.db.work import UnitOfWork, raw_psycopg

__all__ = [
    "AWAY",
    "DRIVERS",
    "MAX_ATTEMPTS",
    "AutoId",
    "Blob",
    "CommitInDoubt",
    "ConnectionLost",
    "Database",
    "Id",
    "LongText",
    "Micros",
    "Name",
    "Statements",
    "Subject",
    "UInt32",
    "UnitOfWork",
    "WriteConflict",
    "array",
    "ascii_text",
    "binary_text",
    "durability",
    "file_of",
    "insert_if_absent",
    "is_conflict",
    "is_connection_lost",
    "is_division_by_zero",
    "is_durable",
    "is_unique_violation",
    "metadata",
    "normalize_url",
    "raw_psycopg",
    "translate_errors",
    "upsert",
]
