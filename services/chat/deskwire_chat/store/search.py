"""The index of messages' words: one call for three databases.

PostgreSQL has the words in a tsvector with a GIN index, MariaDB in a FULLTEXT index, SQLite in a table of FTS5. All
three are given the words of `domain.words`, so that they find the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    SmallInteger,
    Table,
    delete,
    false,
    func,
    insert,
    select,
    text,
    tuple_,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from deskwire_chat.domain.messages import Kind
from deskwire_chat.domain.words import BETWEEN_DIGITS, MAX_BYTES, MIN_DIGITS, Phrase, Term
from deskwire_chat.store.tables import conversations, messages
from deskwire_common import db
from deskwire_common.db import UnitOfWork, raw_psycopg

metadata: Final = db.metadata()

search = Table(
    "message_search",
    metadata,
    # The message's place in the log of its partition.
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", db.Name, nullable=False),
    Column("conversation_id", db.Id, nullable=False),
    Column("seq", db.UInt32, nullable=False),
    Column("message_id", db.Id, nullable=False),
    Column("created_at", db.Micros, nullable=False),
    Column("note", Boolean, nullable=False),
)
"""The words are in a further column that SQLAlchemy doesn't know, on SQLite in the table `message_words`."""

positions = Table(
    "search_positions",
    metadata,
    Column("partition_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("position", BigInteger, nullable=False),
)

_COLUMNS: Final = ("id", "tenant_id", "conversation_id", "seq", "message_id", "created_at", "note")
_COPY: Final = f"COPY message_search ({', '.join(_COLUMNS)}, words) FROM STDIN"
_CHUNK: Final = 200
_MATCH: Final = {
    "postgresql": "message_search.words @@ CAST(:query AS tsquery)",
    "mysql": "MATCH(message_search.words) AGAINST (:query IN BOOLEAN MODE)",
    "sqlite": "message_search.id IN (SELECT rowid FROM message_words WHERE message_words MATCH :query)",
}

Steps = Mapping[int, tuple[int, int]]
"""Partition → how far the index has got in its log, and how far it is to get next."""

# The text of an encoded Content that has nothing else: 0x0a, the length in one byte or two, the text. Null for others,
# and for text with a NUL, which PostgreSQL's own text can't have. LATIN1 has a character for every byte.
_WRITTEN: Final = (
    f"CASE WHEN kind <> {Kind.TEXT:d} OR octet_length(body) < 4 THEN NULL"
    " WHEN get_byte(body, 0) <> 10 OR position('\\x00'::bytea IN body) > 0 THEN NULL"
    " WHEN get_byte(body, 1) < 128 THEN CASE WHEN octet_length(body) = 2 + get_byte(body, 1)"
    " THEN convert_from(substring(body FROM 3), 'LATIN1') END"
    " WHEN octet_length(body) = 3 + get_byte(body, 1) - 128 + 128 * get_byte(body, 2)"
    " THEN convert_from(substring(body FROM 4), 'LATIN1') END"
)
# Texts with long words aren't plain, as cutting the words takes PostgreSQL longer than all the rest; and texts that may
# have a number in groups aren't, as words.of_text writes it together.
_BETWEEN: Final = "[" + "".join(f"\\x{ord(each):02x}" for each in BETWEEN_DIGITS) + "]"
_IS_PLAIN: Final = (
    f"written ~ '^[\\x01-\\x7f]+$' AND written !~ '[A-Za-z0-9]{{{MAX_BYTES + 1}}}'"
    f" AND NOT (written ~ '[0-9]{_BETWEEN}{{1,3}}[0-9]' AND written ~ '([0-9]{_BETWEEN}{{0,3}}){{{MIN_DIGITS}}}')"
)
_SEPARATORS: Final = "".join(f"\\x{each:02x}" for each in range(1, 128) if not chr(each).isalnum())
# The words that words.of_text gives. With blanks between and "ww" before each, no parser interprets them further.
_WORDS: Final = (
    "to_tsvector('pg_catalog.simple', 'ww' || regexp_replace("
    f"btrim(lower(written COLLATE \"C\"), E'{_SEPARATORS}'), '[^a-z0-9]+', ' ww', 'g'))"
)
_ID: Final = "((messages.partition_id::bigint << 48) | messages.position)"  # entry_id
_PUT_PLAIN: Final = (
    f"INSERT INTO message_search ({', '.join(_COLUMNS)}, words)"  # noqa: S608
    f" SELECT {', '.join(_COLUMNS)}, {_WORDS}"
    f" FROM (SELECT {_ID} AS id, tenant_id, conversation_id, seq, message_id, created_at, false AS note,"
    f" {_WRITTEN} AS written FROM messages WHERE %s OFFSET 0) AS m"
    f" WHERE {_IS_PLAIN} AND written ~ '[A-Za-z0-9]' ON CONFLICT DO NOTHING"
)


@dataclass(slots=True)
class Entry:
    """A message's line in the index. Nobody changes it; a frozen one would take three times as long to make."""

    id: int
    tenant: str
    conversation_id: str
    seq: int
    message_id: str
    created_at: int
    note: bool
    words: Sequence[str]


@dataclass(frozen=True, slots=True)
class Hit:
    """Where a message was found."""

    conversation_id: str
    seq: int
    message_id: str
    created_at: int


def entry_id(partition: int, position: int) -> int:
    """Return the key of a message's line."""
    return (partition << 48) | position


# ------------------------------------------------------------------------------------------ following


async def followed(uow: UnitOfWork, partitions: Iterable[int]) -> dict[int, int]:
    """Return how far the index has got in each partition's log; insert the rows that are missing."""
    rows = await uow.execute(select(positions))
    found: dict[int, int] = {row.partition_id: row.position for row in rows}
    missing = [number for number in partitions if number not in found]
    if missing:
        await uow.execute(
            insert(positions), [{"partition_id": number, "position": 0} for number in missing]
        )
    return {**dict.fromkeys(missing, 0), **found}


async def hold(uow: UnitOfWork, steps: Steps) -> bool:
    """Lock positions until the transaction ends; False when another process has moved one."""
    found = await uow.execute(select(positions).where(text(_at(steps))).with_for_update())
    return len(list(found)) == len(steps)


async def advance(uow: UnitOfWork, steps: Steps) -> bool:
    """Move positions; False when another process has moved one."""
    cases = " ".join(f"WHEN {number} THEN {new}" for number, (_, new) in steps.items())
    result = await uow.execute(
        text(  # it contains only integers
            f"UPDATE search_positions SET position = CASE partition_id {cases} ELSE position END"  # noqa: S608
            f" WHERE {_at(steps)}"
        )
    )
    return bool(result.rowcount == len(steps))


def _at(steps: Steps) -> str:
    """Return a condition for the positions at which some steps begin; it contains only integers."""
    return " OR ".join(
        f"(partition_id={number} AND position={old})" for number, (old, _) in steps.items()
    )


def _within(steps: Steps) -> str:
    """Return a condition for the messages of some steps; it contains only integers."""
    return " OR ".join(
        f"(partition_id={number} AND position>{old} AND position<={new})"
        for number, (old, new) in steps.items()
    )


async def put_plain(uow: UnitOfWork, steps: Steps) -> int:
    """Have PostgreSQL index what it can by itself, ASCII texts without very long words; return how many."""
    result = await uow.connection.exec_driver_sql(_PUT_PLAIN % _within(steps))
    return result.rowcount


async def put(uow: UnitOfWork, entries: Sequence[Entry], *, gone: Sequence[int]) -> None:
    """Delete the lines `gone`, and insert `entries`, whose lines don't exist."""
    for start in range(0, len(gone), _CHUNK):
        chunk = gone[start : start + _CHUNK]
        await uow.execute(delete(search).where(search.c.id.in_(chunk)))
        if uow.dialect == "sqlite":
            await uow.execute(
                text("DELETE FROM message_words WHERE rowid = :id"),
                [{"id": each} for each in chunk],
            )
    if not entries:
        return
    if uow.dialect == "postgresql":
        await _copy(uow, entries)
        return
    rows: list[dict[str, Any]] = [
        {
            "id": each.id,
            "tenant_id": each.tenant,
            "conversation_id": each.conversation_id,
            "seq": each.seq,
            "message_id": each.message_id,
            "created_at": each.created_at,
            "note": each.note,
        }
        for each in entries
    ]
    words = [" ".join(each.words) for each in entries]
    if uow.dialect == "sqlite":
        await uow.execute(insert(search), rows)
        await uow.execute(
            text("INSERT INTO message_words (rowid, words) VALUES (:id, :words)"),
            [{"id": each.id, "words": theirs} for each, theirs in zip(entries, words, strict=True)],
        )
        return
    names = ", ".join(_COLUMNS)
    values = ", ".join(f":{name}" for name in _COLUMNS)
    await uow.execute(
        text(f"INSERT INTO message_search ({names}, words) VALUES ({values}, :words)"),  # noqa: S608
        [{**row, "words": theirs} for row, theirs in zip(rows, words, strict=True)],
    )


async def _copy(uow: UnitOfWork, entries: Sequence[Entry]) -> None:
    """Insert lines by COPY through the driver; no value needs an escape."""
    lines = []
    for entry in entries:
        words = " ".join(f"{word}:{place}" for place, word in enumerate(entry.words, 1))
        lines.append(
            f"{entry.id}\t{entry.tenant}\t{entry.conversation_id}\t{entry.seq}\t{entry.message_id}\t"
            f"{entry.created_at}\t{'t' if entry.note else 'f'}\t{words}\n"
        )
    async with raw_psycopg(uow) as driver, driver.cursor() as cursor, cursor.copy(_COPY) as copy:
        await copy.write("".join(lines).encode())


# ------------------------------------------------------------------------------------------- finding


async def find(
    c: AsyncConnection,
    tenant: str,
    terms: Sequence[Term],
    *,
    conversation_id: str = "",
    customer_id: str = "",
    visitor_id: str = "",
    notes: bool,
    before: tuple[int, str] | None,
    limit: int,
) -> list[Hit]:
    """Return the messages that have all terms, newest first, from before (created_at, message_id); "" selects all."""
    columns = search.c
    statement = select(
        columns.conversation_id, columns.seq, columns.message_id, columns.created_at
    ).where(
        text(_MATCH[c.dialect.name]).bindparams(query=_query(c.dialect.name, terms)),
        columns.tenant_id == tenant,
    )
    if conversation_id:
        statement = statement.where(columns.conversation_id == conversation_id)
    if customer_id or visitor_id:
        statement = statement.join(
            conversations, conversations.c.conversation_id == columns.conversation_id
        )
    if customer_id:
        statement = statement.where(conversations.c.customer_id == customer_id)
    if visitor_id:
        statement = statement.where(conversations.c.visitor_id == visitor_id)
    if not notes:
        statement = statement.where(columns.note == false())
    if before is not None:
        statement = statement.where(tuple_(columns.created_at, columns.message_id) < before)
    rows = await c.execute(
        statement.order_by(columns.created_at.desc(), columns.message_id.desc()).limit(limit)
    )
    return [Hit(row.conversation_id, row.seq, row.message_id, row.created_at) for row in rows]


def _query(dialect: str, terms: Sequence[Term]) -> str:
    """Return the terms in a database's query language. Words contain nothing that has a meaning in it."""
    either, every = {
        "postgresql": (" | ", " & "),
        "mysql": (" ", " "),
        "sqlite": (" OR ", " AND "),
    }[dialect]
    must = "+" if dialect == "mysql" else ""
    return every.join(
        f"{must}({either.join(_phrase(dialect, phrase) for phrase in term)})" for term in terms
    )


def _phrase(dialect: str, phrase: Phrase) -> str:
    if dialect == "postgresql":
        return f"({' <-> '.join(phrase.words)}{':*' if phrase.prefix else ''})"
    if dialect == "mysql" and len(phrase.words) == 1:
        return phrase.words[0] + ("*" if phrase.prefix else "")
    return f'"{" ".join(phrase.words)}"{" *" if phrase.prefix else ""}'


async def log(c: AsyncConnection, steps: Steps) -> list[Any]:
    """Return what the index needs of some steps' messages, without those that `put_plain` has put in."""
    statement = select(*_OF_MESSAGES).where(text(f"({_within(steps)})"))
    if c.dialect.name == "postgresql":
        statement = statement.where(
            text(f"NOT EXISTS (SELECT FROM message_search WHERE id = {_ID})")
        )
    return list(await c.execute(statement))


async def at(c: AsyncConnection, places: Sequence[tuple[str, int]]) -> list[Any]:
    """Return the same columns of the messages at (conversation, seq), even of those that `put_plain` has put in."""
    found: list[Any] = []
    columns = messages.c
    for start in range(0, len(places), _CHUNK):
        found += await c.execute(
            select(*_OF_MESSAGES).where(
                tuple_(columns.conversation_id, columns.seq).in_(places[start : start + _CHUNK])
            )
        )
    return found


async def oldest(c: AsyncConnection, steps: Steps) -> int | None:
    """Return when the first message of some steps was written, in microseconds."""
    columns = messages.c
    places = [(number, old + 1) for number, (old, _) in steps.items()]
    found = await c.execute(
        select(func.min(columns.created_at)).where(
            tuple_(columns.partition_id, columns.position).in_(places),
            # What was written years ago in another system hasn't waited for so long.
            columns.imported == false(),
        )
    )
    return cast("int | None", found.scalar())


_OF_MESSAGES: Final = (
    messages.c.partition_id,
    messages.c.position,
    messages.c.tenant_id,
    messages.c.conversation_id,
    messages.c.seq,
    messages.c.message_id,
    messages.c.created_at,
    messages.c.body,
    messages.c.kind,
    messages.c.target_seq,
)
