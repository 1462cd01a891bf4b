"""What a server, a database and a table must be so that no change is lost silently."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

import pymysql

from deskwire_cdc.domain.sources import CustomerRule, SourceUnusable
from deskwire_cdc.sources.mariadb.charsets import CODECS, single_byte_table
from deskwire_cdc.sources.mariadb.server import quoted

# As SHOW CREATE TABLE writes it: `CONSTRAINT "name" FOREIGN KEY (…) REFERENCES … ON DELETE CASCADE`.
_FOREIGN_KEY: Final = re.compile(
    r"CONSTRAINT (?P<name>`(?:[^`]|``)*`) (?P<key>FOREIGN KEY .*?),?$", re.MULTILINE
)
_CHANGING: Final = re.compile(r" ON (?:DELETE|UPDATE) (?:CASCADE|SET NULL|SET DEFAULT)")
_OLD_TIME: Final = "mariadb-5.3"


@dataclass(frozen=True, slots=True)
class Column:
    """A captured table's column as it is now."""

    name: str
    data_type: str
    bits: int
    is_key: bool


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
)  # fmt: skip


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


def check_replica(cursor: pymysql.cursors.Cursor) -> None:
    """Check that a replica logs what it replicates. Raises SourceUnusable."""
    cursor.execute("SELECT @@GLOBAL.gtid_slave_pos, @@GLOBAL.log_slave_updates")
    replicated, logged = cursor.fetchone() or ("", 1)
    if replicated and not logged:
        raise SourceUnusable(
            "log_slave_updates",
            "The server is a replica whose binlog lacks what it replicates: set log_slave_updates=ON.",
        )


def check_table(cursor: pymysql.cursors.Cursor, database: str, table: str) -> list[Column]:
    """Return a table's columns as they are now. Raises SourceUnusable for a table that can't be captured."""
    place = (database, table)
    _check_kind(cursor, database, table)
    _check_cascades(cursor, table)
    cursor.execute(
        "SELECT column_name, sub_part FROM information_schema.statistics "
        "WHERE table_schema = %s AND table_name = %s AND index_name = 'PRIMARY'",
        place,
    )
    keys = dict(cast("Sequence[tuple[str, int | None]]", cursor.fetchall()))
    if not keys or any(part is not None for part in keys.values()):
        raise SourceUnusable("primary_key", f"Table {table} has no primary key over whole columns.")
    cursor.execute(
        "SELECT column_name, data_type, numeric_precision, character_set_name, column_type "
        "FROM information_schema.columns "
        "WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position",
        place,
    )
    columns = []
    for name, data_type, bits, charset, column_type in cursor.fetchall():
        _check_column(cursor, f"{table}.{name}", str(data_type).lower(), charset, str(column_type))
        columns.append(Column(name, str(data_type).lower(), int(bits or 0), name in keys))
    return columns


def _check_kind(cursor: pymysql.cursors.Cursor, database: str, table: str) -> None:
    cursor.execute(
        "SELECT table_schema, table_name, table_type, engine FROM information_schema.tables "
        "WHERE table_schema = %s AND table_name = %s",
        (database, table),
    )
    found = cursor.fetchone()
    if found is None or found[2] not in {"BASE TABLE", "SYSTEM VERSIONED"}:
        raise SourceUnusable(
            "tables", f"There is no table {table}, or the source's user may not SELECT from it."
        )
    schema, name, kind, engine = map(str, found)
    # With lower_case_table_names=1 the server finds names in any case, and writes its own into the binlog.
    if schema != database:
        raise SourceUnusable(
            "url", f"The server's name of database {database} is {schema}: write that."
        )
    if name != table:
        raise SourceUnusable("tables", f"The server's name of table {table} is {name}: write that.")
    if kind == "SYSTEM VERSIONED":
        raise SourceUnusable(
            "system_versioning",
            f"Table {table} keeps its history, which the binlog mixes with its rows: "
            f"ALTER TABLE {quoted(table)} DROP SYSTEM VERSIONING.",
        )
    if engine.lower() != "innodb":
        raise SourceUnusable(
            "engine",
            f"Table {table} has engine {engine}, whose binlog isn't in step with its rows: "
            f"ALTER TABLE {quoted(table)} ENGINE=InnoDB.",
        )


def _check_cascades(cursor: pymysql.cursors.Cursor, table: str) -> None:
    """Refuse foreign keys by which InnoDB changes rows below the binlog.

    SHOW CREATE needs no more than SELECT; information_schema shows foreign keys to owners only.
    """
    cursor.execute(f"SHOW CREATE TABLE {quoted(table)}")
    created = str((cursor.fetchone() or ("", ""))[1])
    for match in _FOREIGN_KEY.finditer(created):
        kept = _CHANGING.sub("", match["key"])
        if kept != match["key"]:
            raise SourceUnusable(
                "foreign_key",
                f"Rows of table {table} change below the binlog when {match['name']} cascades: let the application "
                f"do it, and ALTER TABLE {quoted(table)} DROP FOREIGN KEY {match['name']}, ADD CONSTRAINT "
                f"{_kept(match['name'])} {kept}.",
            )


def _kept(name: str) -> str:
    return quoted(name[1:-1].replace("``", "`") + "_kept")


def _check_column(
    cursor: pymysql.cursors.Cursor, name: str, kind: str, charset: str | None, column_type: str
) -> None:
    table = name.partition(".")[0]
    if kind in UNSUPPORTED_TYPES or "COMPRESSED" in column_type:
        shown = f"{kind} COMPRESSED" if "COMPRESSED" in column_type else kind
        raise SourceUnusable(
            "column_type", f"Column {name} has type {shown}, which can't be captured."
        )
    if _OLD_TIME in column_type:
        raise SourceUnusable(
            "column_type",
            f"Column {name} keeps times in the format of MariaDB 10.0: set mysql56_temporal_format=ON, and "
            f"ALTER TABLE {quoted(table)} FORCE.",
        )
    if charset is not None and charset not in CODECS and single_byte_table(cursor, charset) is None:
        raise SourceUnusable(
            "character_set",
            f"Column {name} is in {charset}, which can't be captured: "
            f"ALTER TABLE {quoted(table)} CONVERT TO CHARACTER SET utf8mb4.",
        )


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
