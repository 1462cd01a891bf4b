"""Row changes: what a source says of them, and the numbers they get."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias
from urllib.parse import quote

from deskwire_cdc.domain.sources import Source

Json: TypeAlias = str | int | float | bool | None
"""A column value as events carry it; see `sources/values.py` for how each SQL type is written."""
Row: TypeAlias = Mapping[str, Json]

# Positions of one incarnation count up from its creation, in seconds since this date, in the upper half of 64 bits:
# so a source that was deleted and created again is newer than all it said before. Good until 2088 in a signed BIGINT.
VERSION_EPOCH_SECONDS = 1_577_836_800  # 2020-01-01 UTC
MAX_KEY_TEXT = 128
EVENT_NAMESPACE = uuid.UUID("6f1b6d52-6f0c-5d3e-9c55-0d9f3a1c7c11")


class Operation(StrEnum):
    """What happened to a row."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True)
class Change:
    """One row's change as a source says it."""

    table: str
    operation: Operation
    key: Row
    before: Row | None
    after: Row | None
    position: str
    """Unique and stable within an incarnation: the event id is derived from it."""
    committed_at: int
    """Microseconds."""
    read_at: int
    """Microseconds, when change capture had it in hand."""
    unreadable: str = ""
    """Why the row as it is now can't be told; then there are no images. Empty: it can."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes in log order, and where to start again once they are delivered."""

    changes: Sequence[Change]
    position: str
    read_count: int
    """Rows read for it, the dropped ones too."""
    snapshot: bool = False
    """Whether the source still reads rows that were there before."""
    notice: str = ""
    """What an operator should know, such as a TRUNCATE; empty: nothing."""


@dataclass(frozen=True, slots=True)
class NumberedChange:
    """A change with the number that its subject gives it."""

    change: Change
    event_id: str
    subject: str
    sequence: int
    source_version: int
    """Monotonic over the source: what UpsertCustomer gets when the rule has no version column."""


def key_text(key: Row) -> str:
    """Return a primary key as part of a subject: values percent-encoded, with commas, in the table's column order.

    NULL, which SQLite takes in a key, is `%`, which no encoded text is. A key longer than 128 characters is replaced by
    its SHA-256, marked with `~`.
    """
    text = ",".join("%" if value is None else quote(str(value), safe="") for value in key.values())
    if len(text) > MAX_KEY_TEXT:
        return "~" + hashlib.sha256(text.encode()).hexdigest()
    return text


def subject_of(source: Source, change: Change) -> str:
    """Return `<tenant>/<source>/<table>/<key>`, the subject and Kafka key of all changes of one row."""
    return f"{source.tenant_id}/{source.source_id}/{change.table}/{key_text(change.key)}"


def event_id_of(source: Source, change: Change) -> str:
    """Return an id that is the same for every read of a change, and another for another incarnation of the source."""
    return str(uuid.uuid5(EVENT_NAMESPACE, f"{source.incarnation}/{change.position}"))


def number(
    source: Source,
    changes: Sequence[Change],
    sequences: Mapping[str, int],
    read_count: int,
) -> tuple[list[NumberedChange], dict[str, int]]:
    """Give each change its event id and its subject's next sequence.

    `sequences`: the last saved one of each subject; `read_count`: rows read before this batch. Returns the changes and
    the sequences after them, which are saved together with the position: so a batch that is read again gets the same
    numbers, and a subject has no holes.
    """
    after: dict[str, int] = {}
    numbered = []
    base = ((source.created_at // 1_000_000) - VERSION_EPOCH_SECONDS) << 32
    for index, change in enumerate(changes, start=1):
        subject = subject_of(source, change)
        sequence = after.get(subject, sequences.get(subject, 0)) + 1
        after[subject] = sequence
        numbered.append(
            NumberedChange(
                change,
                event_id=event_id_of(source, change),
                subject=subject,
                sequence=sequence,
                source_version=base + read_count + index,
            )
        )
    return numbered, after


def change_to_json(change: Change) -> str:
    """Return a change as the table of staged snapshot rows keeps it; `change_from_json` is the way back."""
    return json.dumps(
        {
            "table": change.table,
            "operation": change.operation.value,
            "key": dict(change.key),
            "before": None if change.before is None else dict(change.before),
            "after": None if change.after is None else dict(change.after),
            "position": change.position,
            "committed_at": change.committed_at,
            "read_at": change.read_at,
            "unreadable": change.unreadable,
        },
        ensure_ascii=False,
    )


def change_from_json(text: str) -> Change:
    """Return the change that `change_to_json` wrote."""
    data = json.loads(text)
    return Change(**{**data, "operation": Operation(data["operation"])})
