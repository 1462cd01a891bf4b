"""What a SQLite source does to its owner's file, and what it makes of a file that isn't the same any more."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deskwire_cdc.domain.changes import Batch, Change, Operation, subject_of
from deskwire_cdc.domain.sources import SourceUnreachable, SourceUnusable
from deskwire_cdc.sources import Reader
from support.capture import MARKER, batches_until, changes_of, reader_of, source_of

TABLE = f"""
CREATE TABLE c (id INTEGER PRIMARY KEY, name);
CREATE TABLE {MARKER} (id INTEGER PRIMARY KEY);
INSERT INTO c VALUES (1, 'Ada');
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "crm.db"
    write(path, *TABLE.split(";\n"))
    return path


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    try:
        yield connection
    finally:
        connection.close()


def write(path: Path, *statements: str, values: Sequence[Any] = ()) -> None:
    with opened(path) as connection:
        for statement in statements:
            connection.execute(statement, values)


def reader_for(path: Path, *tables: str, **options: Any) -> Reader:
    source = source_of(f"sqlite://{path}", *(tables or ("c",)), MARKER)
    return reader_of(source, roots=[path.parent], **options)


async def read(reader: Reader, path: Path, *, snapshot: str = "") -> list[Change]:
    """Return what is read up to a new marker, and up to the snapshot of a row whose key has this column."""
    write(path, f"INSERT INTO {MARKER} VALUES (NULL)")

    def enough(found: Sequence[Batch]) -> bool:
        changes = [change for batch in found for change in batch.changes]
        copied = [each.key for each in changes if each.operation is Operation.SNAPSHOT]
        return any(each.table == MARKER for each in changes) and (
            not snapshot or any(snapshot in key for key in copied)
        )

    batches = await batches_until(reader, await reader.start_position(), enough)
    await reader.close()
    return changes_of(batches)


async def test_the_owner_may_distrust_the_schema(path: Path) -> None:
    """Then a trigger may call innocuous functions only; the texts are the same."""
    text = "a\0b\"\\\n\x01'é😀"
    reader = reader_for(path)
    await reader.install()
    with opened(path) as owner:
        owner.execute("PRAGMA trusted_schema = OFF")
        owner.execute("INSERT INTO c VALUES (2, ?)", (text,))
        owner.execute("UPDATE c SET name = ? WHERE id = 1", (b"\x00\xff",))
        owner.execute("DELETE FROM c WHERE id = 1")
    found = await read(reader, path)
    changes = [each for each in found if each.operation is not Operation.SNAPSHOT]
    assert [each.operation for each in changes] == [
        Operation.INSERT,
        Operation.UPDATE,
        Operation.DELETE,
    ]
    assert dict(changes[0].after or {}) == {"id": 2, "name": text}
    assert dict(changes[2].before or {}) == {"id": 1, "name": "AP8="}


async def test_changes_that_wait_do_not_fill_the_owners_disk(path: Path) -> None:
    reader = reader_for(path, max_change_bytes=20_000)
    await reader.install()
    for number in range(100):
        write(path, "UPDATE OR ABORT c SET name = ?", values=[f"{number:01000}"])
    with opened(path) as owner:
        (waiting,) = owner.execute("SELECT count(*) FROM _deskwire_changes").fetchone()
        assert owner.execute("SELECT name FROM c").fetchone() == (f"{99:01000}",)
    assert 5 < waiting < 15
    with pytest.raises(SourceUnusable) as caught:
        await batches_until(reader, await reader.start_position(), lambda _: False)
    await reader.close()
    assert caught.value.setting == "_deskwire_changes"


async def test_a_key_that_has_another_name_before_it_is_read(path: Path) -> None:
    reader = reader_for(path)
    await reader.install()
    write(
        path,
        "INSERT INTO c VALUES (2, 'b')",
        "ALTER TABLE c RENAME COLUMN id TO customer_id",
        "INSERT INTO c VALUES (3, 'c')",
    )
    found = await read(reader, path, snapshot="customer_id")
    inserted = [each for each in found if each.operation is Operation.INSERT]
    assert [dict(each.key) for each in inserted] == [{"id": 2}, {"id": 3}]


async def test_a_table_that_was_rebuilt_with_another_key(path: Path) -> None:
    reader = reader_for(path)
    await reader.install()
    write(
        path,
        "BEGIN IMMEDIATE",
        "INSERT INTO c VALUES (2, 'b')",
        "CREATE TABLE c_new (uuid TEXT PRIMARY KEY, name TEXT)",
        "INSERT INTO c_new SELECT 'u' || id, name FROM c",
        "DROP TABLE c",
        "ALTER TABLE c_new RENAME TO c",
        "COMMIT",
    )
    found = await read(reader, path, snapshot="uuid")
    assert [dict(each.key) for each in found if each.operation is Operation.INSERT] == [{"id": 2}]
    assert {"uuid": "u2"} in [dict(each.key) for each in found]


@pytest.mark.parametrize("kept", [True, False])
async def test_a_file_that_a_backup_replaced(path: Path, kept: bool) -> None:
    """Its rows may be older than what was carried over: neither the old nor the new file is read on."""
    reader = reader_for(path)
    await reader.check()
    await reader.install()
    backup = path.with_suffix(".bak")
    if kept:
        with opened(path) as source, opened(backup) as target:
            source.backup(target)
    else:
        write(backup, *TABLE.split(";\n"))
    position = await reader.start_position()
    with pytest.raises(SourceUnreachable):
        async for batch in reader.batches(position):
            position = batch.position
            if not batch.changes:
                backup.replace(path)
    await reader.close()
    write(path, *(f"INSERT INTO c VALUES ({number}, '')" for number in range(50, 90)))
    again = reader_for(path)
    again.source = reader.source
    await again.install()
    with pytest.raises(SourceUnusable) as caught:
        await batches_until(again, position, lambda _: False)
    await again.close()
    assert caught.value.setting == "file_history"


async def test_a_file_that_is_gone_while_it_is_read(path: Path) -> None:
    reader = reader_for(path)
    await reader.install()
    with pytest.raises(SourceUnreachable):
        async for batch in reader.batches(await reader.start_position()):
            if not batch.changes:
                path.unlink()  # noqa: ASYNC240
    await reader.close()


def test_a_key_that_is_null_is_no_empty_one() -> None:
    source = source_of("sqlite:///crm.db", "c")

    def subject(value: str | None) -> str:
        return subject_of(source, Change("c", Operation.INSERT, {"id": value}, None, {}, "1", 0, 0))

    assert len({subject(None), subject(""), subject("%"), subject("None")}) == 4
