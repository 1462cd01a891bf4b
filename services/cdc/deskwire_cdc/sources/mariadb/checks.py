"""What a server, a database and a table must be so that no change is lost silently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import pymysql

from deskwire_cdc.domain.sources import CustomerRule, SourceUnusable
from deskwire_cdc.sources.mariadb.binlog import Column

# Variable, the value that it must have, and why another one loses changes.
REQUIRED_VARIABLES = (
    ("log_bin", "1", "ON", "there is no binlog to read"),
    ("binlog_format", "ROW", "ROW", "statements don't say which rows they changed"),
    ("binlog_row_image", "FULL", "FULL", "other images leave columns out"),
    ("binlog_row_metadata", "FULL", "FULL", "column names are only in full metadata"),
    ("log_bin_compress", "0", "OFF", "compressed row events can't be read"),
)
UNSUPPORTED_TYPES = frozenset(
    {
        "uuid", "inet4", "inet6", "geometry", "point", "linestring", "polygon", "multipoint",
        "multilinestring", "multipolygon", "geometrycollection", "vector",
    }
)  # fmt: skip  # fmt: skip


def check_server(cursor: pymysql.cursors.Cursor) -> None:
    """Check the server's variables. Raises SourceUnusable, which names the variable to set."""
    cursor.execute("SELECT VERSION()")
    version = str((cursor.fetchone() or ("",))[0])
    if "mariadb" not in version.lower():
        raise SourceUnusable(
            "version",
            f"The server is version {version}: only MariaDB's binlog is read, its GTIDs differ "
            "from MySQL's.",
        )
    cursor.execute("SHOW GLOBAL VARIABLES")
    values = {str(name): str(value) for name, value in cursor.fetchall()}
    for name, _, wanted, why in REQUIRED_VARIABLES:
        found = values.get(name, "missing")
        if found.upper() != wanted:
            raise SourceUnusable(name, f"Set {name}={wanted} (it is {found}): {why}.")


def check_filters(cursor: pymysql.cursors.Cursor, database: str) -> None:
    """Check that the binlog has the database. Raises SourceUnusable."""
    cursor.execute("SHOW MASTER STATUS")
    found = cursor.fetchone()
    if found is None:
        raise SourceUnusable("log_bin", "Set log_bin=ON: there is no binlog to read.")
    only = [name for name in str(found[2] or "").split(",") if name]
    ignored = [name for name in str(found[3] or "").split(",") if name]
    if only and database not in only:
        raise SourceUnusable("binlog_do_db", f"binlog_do_db leaves out the database {database}.")
    if database in ignored:
        raise SourceUnusable("binlog_ignore_db", f"binlog_ignore_db leaves out {database}.")


def check_table(cursor: pymysql.cursors.Cursor, database: str, table: str) -> list[Column]:
    """Return a table's columns as they are now. Raises SourceUnusable for a table that can't be captured."""
    place = (database, table)
    cursor.execute(
        "SELECT engine FROM information_schema.tables "
        "WHERE table_schema = %s AND table_name = %s AND table_type = 'BASE TABLE'",
        place,
    )
    if (found := cursor.fetchone()) is None:
        raise SourceUnusable(
            "tables", f"There is no table {table}, or the source's user may not SELECT from it."
        )
    if str(found[0]).lower() != "innodb":
        raise SourceUnusable(
            "engine",
            f"Table {table} has engine {found[0]}, whose binlog isn't in step with its rows: "
            f"ALTER TABLE {table} ENGINE=InnoDB.",
        )
    cursor.execute(
        "SELECT column_name, sub_part FROM information_schema.statistics "
        "WHERE table_schema = %s AND table_name = %s AND index_name = 'PRIMARY'",
        place,
    )
    keys = dict(cast("Sequence[tuple[str, int | None]]", cursor.fetchall()))
    if not keys or any(part is not None for part in keys.values()):
        raise SourceUnusable("primary_key", f"Table {table} has no primary key over whole columns.")
    cursor.execute(
        "SELECT column_name, data_type, numeric_precision FROM information_schema.columns "
        "WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position",
        place,
    )
    columns = [
        Column(name, str(data_type).lower(), int(bits or 0), name in keys)
        for name, data_type, bits in cursor.fetchall()
    ]
    for column in columns:
        if column.data_type in UNSUPPORTED_TYPES:
            raise SourceUnusable(
                "column_type",
                f"Column {table}.{column.name} has type {column.data_type}, which can't be "
                "captured.",
            )
    return columns


def check_rule(rule: CustomerRule | None, columns: Mapping[str, Sequence[Column]]) -> None:
    """Check a rule against the `columns` of each table. Raises SourceUnusable when one isn't there."""
    if rule is not None:
        known = {column.name: column for column in columns[rule.table]}
        for name in rule.named_columns():
            if name not in known:
                raise SourceUnusable("customer_rule", f"Table {rule.table} has no column {name}.")
        version = rule.version_column
        if version and not known[version].data_type.endswith("int"):
            raise SourceUnusable(
                "customer_rule", f"Column {version} is not an integer: it can't be a version."
            )
