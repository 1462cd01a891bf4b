"""What all kinds do alike with a row's images."""

from __future__ import annotations

from collections.abc import Sequence

from deskwire_cdc.domain.changes import Change, Operation, Row


def row_changes(
    table: str,
    operation: Operation,
    keys: Sequence[str],
    before: Row | None,
    after: Row | None,
    *,
    position: str,
    committed_at: int,
    read_at: int,
    unreadable: str = "",
    unreadable_before: bool = False,
) -> list[Change]:
    """Return one change; for an update of the primary key a delete and an insert, as the key is the subject.

    `unreadable`: why the row as it is now can't be told; `unreadable_before`: what it was can't be.
    """

    def change(operation: Operation, before: Row | None, after: Row | None, at: str) -> Change:
        image = after if after is not None else before
        key = {} if image is None else {name: image[name] for name in keys}
        before = None if unreadable_before else before
        if unreadable and operation is not Operation.DELETE:
            return Change(table, operation, key, None, None, at, committed_at, read_at, unreadable)
        return Change(table, operation, key, before, after, at, committed_at, read_at)

    if (
        before is not None
        and after is not None
        and any(before[name] != after[name] for name in keys)
    ):
        return [
            change(Operation.DELETE, before, None, f"{position}:delete"),
            change(Operation.INSERT, None, after, f"{position}:insert"),
        ]
    return [change(operation, before, after, position)]
