"""Column types that mean the same on every dialect."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect

_NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "pk": "pk_%(table_name)s",
}


def binary_text(length: int) -> sa.types.TypeEngine[str]:
    """Text of up to `length` characters that compares and sorts by its bytes on every dialect."""
    return (
        sa.String(length)
        .with_variant(mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), "mysql")
        .with_variant(postgresql.VARCHAR(length, collation="C"), "postgresql")
    )


def ascii_text(length: int) -> sa.types.TypeEngine[str]:
    """ASCII of up to `length` characters (one byte each in an index on MariaDB), compared by its bytes."""
    return (
        sa.String(length)
        .with_variant(mysql.VARCHAR(length, charset="ascii", collation="ascii_bin"), "mysql")
        .with_variant(postgresql.VARCHAR(length, collation="C"), "postgresql")
    )


#: A UUID in its 36 characters.
Id: Final = ascii_text(36)
#: A tenant, system id, adapter id …: up to 64 ASCII characters.
Name: Final = ascii_text(64)
#: A subject: the id of a caller, an agent's id too; up to 255 ASCII characters.
Subject: Final = ascii_text(255)
#: Microseconds since 1970-01-01 UTC.
Micros: Final = sa.BigInteger()
#: An unsigned 32-bit number of the contract (seq, version, sequence).
UInt32: Final = sa.BigInteger()
#: Bytes, up to 16 MiB.
Blob: Final = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql")
#: Long text, for people or for JSON, up to 16 MiB.
LongText: Final = sa.Text().with_variant(
    mysql.MEDIUMTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql"
)
#: A generated, growing BIGINT primary key.
AutoId: Final = sa.BigInteger().with_variant(sqlite_dialect.INTEGER(), "sqlite")


def metadata() -> sa.MetaData:
    """A MetaData whose constraint names are the same on every dialect."""
    return sa.MetaData(naming_convention=_NAMING)
