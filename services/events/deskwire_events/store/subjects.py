"""Sequences of external events, by subject."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

from deskwire_common.db import UnitOfWork
from deskwire_events.store.tables import external_subjects

# One statement for all subjects of a call, always the same text: as parameters they come in one JSON array. Its order
# is the order in which their rows are locked.
_DRAW: Final = {
    "postgresql": sa.text(
        "INSERT INTO external_subjects (tenant_id, subject, last)"
        " SELECT CAST(:tenant AS varchar), s, n"
        ' FROM json_to_recordset(CAST(:counts AS json)) AS x(s varchar, n bigint) ORDER BY s COLLATE "C"'
        " ON CONFLICT (tenant_id, subject) DO UPDATE SET last = external_subjects.last + excluded.last"
        " RETURNING subject, last"
    ),
    "sqlite": sa.text(
        "INSERT INTO external_subjects (tenant_id, subject, last)"
        " SELECT :tenant, json_extract(value, '$.s'), json_extract(value, '$.n') FROM json_each(:counts) WHERE true"
        " ON CONFLICT (tenant_id, subject) DO UPDATE SET last = external_subjects.last + excluded.last"
        " RETURNING subject, last"
    ),
    "mysql": sa.text(
        "INSERT INTO external_subjects (tenant_id, subject, last)"
        " SELECT :tenant, s, n FROM"
        " JSON_TABLE(:counts, '$[*]' COLUMNS (s VARCHAR(128) PATH '$.s', n BIGINT PATH '$.n')) AS x"
        " ORDER BY CAST(s AS BINARY)"
        " ON DUPLICATE KEY UPDATE last = external_subjects.last + VALUES(last)"
    ),
}


async def draw_sequences(uow: UnitOfWork, tenant: str, counts: Mapping[str, int]) -> dict[str, int]:
    """For each subject the last sequence before its next `counts[subject]` ones, now taken.

    The subjects' rows stay locked until the transaction ends; everybody locks them in one order.
    """
    if not counts:
        return {}
    asked = json.dumps([{"s": subject, "n": counts[subject]} for subject in sorted(counts)])
    result: sa.CursorResult[Any] = await uow.execute(
        _DRAW[uow.dialect], {"tenant": tenant, "counts": asked}
    )
    if uow.dialect == "mysql":
        c = external_subjects.c
        mine = (c.tenant_id == tenant, c.subject.in_(list(counts)))
        result = await uow.execute(sa.select(c.subject, c.last).where(*mine))
    return {row.subject: int(row.last) - counts[row.subject] for row in result}
