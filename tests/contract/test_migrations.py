"""Migrations make what the metadata says: on every database, by frozen revisions, once."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.dialects import mysql

from deskwire_common.db import Database
from deskwire_common.migrations import check_schema, migrate, version_table

SERVICES: Final = ("deskwire_chat", "deskwire_tickets", "deskwire_events", "deskwire_cdc")

#: What migrations make that no metadata can say, and what takes it away: by package and dialect.
BEYOND: Final[Mapping[tuple[str, str], str]] = {
    ("deskwire_chat", "postgresql"): "ALTER TABLE message_search DROP COLUMN words",
    ("deskwire_chat", "mysql"): "ALTER TABLE message_search DROP COLUMN words",
    ("deskwire_chat", "sqlite"): "DROP TABLE message_words",
}

_POSTGRESQL: Final = (
    "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,"
    " a.attgenerated, o.collname, pg_get_expr(d.adbin, d.adrelid) FROM pg_attribute a"
    " JOIN pg_class c ON c.oid = a.attrelid AND c.relkind = 'r'"
    " LEFT JOIN pg_collation o ON o.oid = a.attcollation"
    " LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
    " WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped",
    "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "SELECT r.relname, c.conname, pg_get_constraintdef(c.oid) FROM pg_constraint c"
    " JOIN pg_class r ON r.oid = c.conrelid WHERE c.connamespace = 'public'::regnamespace",
)


def metadata_of(package: str) -> list[sa.MetaData]:
    """All that the modules of the service's store have."""
    store = importlib.import_module(f"{package}.store")
    names = [each.name for each in pkgutil.iter_modules(getattr(store, "__path__", ()))]
    modules = [store, *(importlib.import_module(f"{store.__name__}.{name}") for name in names)]
    found = [each for m in modules for each in vars(m).values() if isinstance(each, sa.MetaData)]
    return list(dict.fromkeys(found))


def revisions(package: str) -> list[Path]:
    module = importlib.import_module(package)
    return sorted(Path(str(module.__file__)).parent.glob("migrations/versions/*.py"))


# ------------------------------------------------------------------------------------- what a database has


def parts(statement: str) -> tuple[str, ...]:
    """A CREATE TABLE's columns, constraints and options, without their order."""
    head, _, body = statement.partition("(")
    found, depth = [""], 1
    for each in body:
        depth += {"(": 1, ")": -1}.get(each, 0)
        if depth == 0 or (each == "," and depth == 1):
            found.append("")
        else:
            found[-1] += each
    return (head, *sorted(" ".join(each.split()) for each in found))


def described(connection: sa.Connection) -> Iterator[tuple[Any, ...]]:
    """Every table, column, key and index as the database itself says them."""
    if connection.dialect.name == "postgresql":
        for query in _POSTGRESQL:
            yield from (tuple(row) for row in connection.exec_driver_sql(query))
    elif connection.dialect.name == "mysql":
        for table in sa.inspect(connection).get_table_names():
            row = connection.exec_driver_sql(f"SHOW CREATE TABLE `{table}`").one()
            yield (table, *parts(row[1]))
    else:
        query = "SELECT tbl_name, type, sql FROM sqlite_schema WHERE sql IS NOT NULL"
        for table, kind, statement in connection.exec_driver_sql(query):
            yield (table, *(parts(statement) if kind == "table" else (statement,)))


def schema(connection: sa.Connection) -> set[tuple[Any, ...]]:
    return {each for each in described(connection) if not each[0].endswith("_version")}


def type_differs(_context: Any, _found: Any, _wanted: Any, found: Any, wanted: Any) -> bool | None:
    """Alembic's own judgement, but for the TINYBLOB that MariaDB makes of BLOB(32)."""
    small = isinstance(found, mysql.TINYBLOB) and isinstance(wanted, sa.LargeBinary)
    return False if small else None


def default_differs(*arguments: Any) -> bool | None:
    """Alembic's own judgement, but for the 0 that MariaDB makes of false."""
    *_, found, _wanted, rendered = arguments
    return False if (found, rendered) == ("0", "false") else None


def differences(connection: sa.Connection, metadata: list[sa.MetaData], package: str) -> list[Any]:
    """What alembic would have to do to make the database what the metadata says."""
    options = {
        "compare_type": type_differs,
        "compare_server_default": default_differs,
        "version_table": version_table(package),
    }
    context = MigrationContext.configure(connection, opts=options)
    return list(compare_metadata(context, metadata))  # type: ignore[arg-type]


def created(metadata: list[sa.MetaData]) -> Callable[[sa.Connection], None]:
    def create(connection: sa.Connection) -> None:
        for each in metadata:
            each.create_all(connection, checkfirst=False)

    return create


async def done(db: Database, work: Callable[..., Any], *args: Any) -> Any:
    """Run `work(connection, *args)` in a transaction of its own."""
    async with db.transaction() as uow:
        result = await uow.connection.run_sync(work, *args)
        await uow.commit()
    return result


async def strip(db: Database, package: str) -> None:
    """Take away what no metadata can say; fails where it isn't there."""
    if statement := BEYOND.get((package, db.dialect)):
        await done(db, lambda connection: connection.exec_driver_sql(statement))


@pytest.fixture
async def migrated(database_url: str, package: str) -> AsyncIterator[Database]:
    await migrate(database_url, package)
    db = await Database.open(database_url)
    yield db
    await db.close()


@pytest.fixture
async def other(
    request: pytest.FixtureRequest, database_url: str, tmp_path: Path
) -> AsyncIterator[Database]:
    """A second database of the same kind, empty."""
    name = {"postgresql": "postgres", "mysql": "mariadb"}.get(database_url.partition(":")[0])
    server = request.getfixturevalue(name) if name else None
    url = server.fresh() if server else f"sqlite:///{tmp_path / 'other.db'}"
    db = await Database.open(url)
    yield db
    await db.close()
    if server:
        server.drop(url)


# -------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("package", SERVICES)
async def test_a_new_database_is_what_the_metadata_says(
    migrated: Database, other: Database, package: str
) -> None:
    metadata = metadata_of(package)
    assert metadata
    await check_schema(migrated, package)
    await strip(migrated, package)
    assert await done(migrated, differences, metadata, package) == []
    await done(other, created(metadata))
    assert await done(migrated, schema) == await done(other, schema)


@pytest.mark.parametrize("package", ["deskwire_tickets"])
async def test_a_column_or_an_index_that_only_the_metadata_has_shows(
    migrated: Database, other: Database, package: str
) -> None:
    changed = sa.MetaData()
    for each in metadata_of(package):
        for table in each.tables.values():
            table.to_metadata(changed)
    table = changed.tables["tickets"]
    table.append_column(sa.Column("forgotten", sa.Integer))
    sa.Index("tickets_forgotten", table.c.state)
    found = await done(migrated, differences, [changed], package)
    assert sorted(each[0] for each in found) == ["add_column", "add_index"]
    await done(other, created([changed]))
    assert await done(migrated, schema) != await done(other, schema)


@pytest.mark.parametrize("package", SERVICES)
async def test_a_second_run_does_nothing(
    migrated: Database, database_url: str, package: str
) -> None:
    before = await done(migrated, schema)
    assert await migrate(database_url, package) == []
    assert await done(migrated, schema) == before


@pytest.mark.parametrize("package", SERVICES)
def test_a_revision_imports_no_code_of_deskwire(package: str) -> None:
    assert revisions(package)
    for path in revisions(package):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "."]
            assert not [name for name in names if re.match(r"deskwire|\.", name)], path
