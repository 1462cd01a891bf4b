"""SQLite: triggers in the external file write every changed row into a table that is read here.

JSON values are text with a letter for the stored type, exact for every value: `i42`, `r0.1`, `tÄ`, `x00ff`, null.

When the schema changes, triggers are written anew and the table is read again (operation `snapshot`), since what was
written between the schema change and the new triggers may be missing. Not seen, for SQLite fires no trigger: the rows
that `INSERT OR REPLACE` removes because of a *secondary* unique key, unless the writer sets `PRAGMA
recursive_triggers=ON`; a replaced row with the same primary key is seen as `insert`. Delete the source before dropping
a captured column: SQLite refuses to drop a column that a trigger uses.
"""

from __future__ import annotations

from typing import Final

from deskwire_cdc.sources.port import SourceKind
from deskwire_cdc.sources.sqlite.reader import SqliteReader, path_of

__all__ = ["KIND"]

KIND: Final = SourceKind("sqlite", check_url=path_of, reader=SqliteReader, operators_only=True)
