"""Migrations: Alembic scripts of a service (`<package>/migrations/versions/*.py`), run by one shared environment.

Servers don't migrate: `python -m <package> migrate` does, under a lock, so jobs may run side by side. Each
service has a version table of its own, `<package>_version`.

A revision is frozen. It spells its own tables and types and imports no code of deskwire, so it makes the same schema
for ever, in a new database and in one that is upgraded. A test compares the schema that all of them make with the
metadata.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire.common.v1 import error_reason_pb2
from deskwire_common import db as dbs
from deskwire_common.db import Database
from deskwire_common.errors import FailedPrecondition, Unavailable
from deskwire_common.locks import locked
from deskwire_common.logging import get_logger

#: Seconds to wait for another migration, and for the locks of one statement.
LOCK_WAIT: Final = 120.0
STATEMENT_LOCK_WAIT: Final = 10
STATEMENT_TIMEOUT: Final = 900


def version_table(package: str) -> str:
    """The table that records which migration a database has."""
    return f"{package}_version"


def _scripts(package: str) -> ScriptDirectory:
    module = importlib.import_module(package)
    if module.__file__ is None:
        raise FailedPrecondition(f"{package} has no folder")
    folder = Path(module.__file__).parent / "migrations"
    return ScriptDirectory(str(folder), version_locations=[str(folder / "versions")])


def _context(connection: sa.Connection, package: str, **options: Any) -> MigrationContext:
    return MigrationContext.configure(
        connection,
        opts={
            "version_table": version_table(package),
            "transactional_ddl": connection.dialect.name in {"sqlite", "postgresql"},
            **options,
        },
    )


def _upgrade(connection: sa.Connection, package: str) -> list[str]:
    scripts = _scripts(package)
    applied: list[str] = []

    def steps(revision: Any, _context: Any) -> Any:
        found = scripts._upgrade_revs("head", revision)  # noqa: SLF001 - what alembic's own `upgrade` calls
        applied.extend(step.revision.revision for step in found)
        return found

    context = _context(connection, package, fn=steps)
    if set(context.get_current_heads()) == set(scripts.get_heads()):
        return []
    with Operations.context(context):
        context.run_migrations()
    return applied


def _missing(connection: sa.Connection, package: str) -> tuple[list[str], list[str]]:
    has = sorted(_context(connection, package).get_current_heads())
    return has, sorted(_scripts(package).get_heads())


@asynccontextmanager
async def _locked(db: Database, package: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(LOCK_WAIT) as limit, locked(db, f"migrate-{package}", poll=0.05):
            limit.reschedule(None)
            yield
    except TimeoutError as error:
        raise Unavailable(
            f"another migration of {package} is running since {LOCK_WAIT:g} s"
        ) from error


async def _set_timeouts(connection: AsyncConnection, dialect: str) -> None:
    if dialect == "postgresql":
        await connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{STATEMENT_LOCK_WAIT}s'")
        await connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}s'")
    elif dialect == "mysql":
        await connection.exec_driver_sql(f"SET SESSION lock_wait_timeout = {STATEMENT_LOCK_WAIT}")


async def migrate(url: str, package: str) -> list[str]:
    """Bring the database to the newest schema; return the revisions that were applied, oldest first.

    Safe to run several at once. On PostgreSQL and SQLite all or nothing; MariaDB commits every DDL statement
    by itself, so there a migration that failed half-way is repaired by hand. Raises Unavailable.
    """
    if dbs.normalize_url(url).get_backend_name() == "sqlite":
        dbs.file_of(dbs.normalize_url(url)).parent.mkdir(parents=True, exist_ok=True)
    db = await Database.open(
        url, pool_size=2, statement_timeout=0, lock_timeout=STATEMENT_LOCK_WAIT
    )
    try:
        async with _locked(db, package), db.transaction() as uow:
            await _set_timeouts(uow.connection, db.dialect)
            applied = await uow.connection.run_sync(_upgrade, package)
            await uow.commit()
    finally:
        await db.close()
    get_logger().info("migrated", package=package, database=db.redacted_url, revisions=applied)
    return applied


def run_migrations(url: str, package: str) -> list[str]:
    """`migrate` for callers that aren't async. Blocks; inside a running event loop it blocks that one too."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(migrate(url, package))
    result: list[str] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            result.extend(asyncio.run(migrate(url, package)))
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            failure.append(error)

    thread = threading.Thread(target=work, name="migrate")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result


async def check_schema(db: Database, package: str) -> None:
    """Raise FailedPrecondition (SCHEMA_OUTDATED) unless the database has exactly this program's schema."""
    async with db.read() as connection:
        has, wants = await connection.run_sync(_missing, package)
    if has != wants:
        raise FailedPrecondition(
            f"the schema of {package} is {', '.join(has) or 'empty'}, not {', '.join(wants)}: "
            f"run `python -m {package} migrate`",
            reason=error_reason_pb2.ERROR_REASON_SCHEMA_OUTDATED,
            metadata={"has": ",".join(has), "wants": ",".join(wants)},
        )
