"""Which SQLite files may be captured: those in the operator's folders, and never the suite's own."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deskwire_cdc.domain.sources import SourceUnreachable

#: The one message that a tenant gets: it doesn't show whether there is nothing, no database, or somebody else's file.
NOT_THERE: Final = "There is no SQLite database at this url that change capture may read."
# The tables by which migrations know the schema of a database of deskwire's.
_OWN_TABLE: Final = "deskwire_*_version"


class NotThere(SourceUnreachable):
    """The one error for a file; `detail` is the operator's."""

    def __init__(self, detail: str) -> None:
        super().__init__("url", NOT_THERE, detail=detail)


@dataclass(frozen=True, slots=True)
class Files:
    """The folders that SQLite sources may lie in; none: there are no SQLite sources.

    `own` are the suite's folders. What is in one is refused, unless a root lies deeper within it.
    """

    roots: Sequence[Path]
    own: Sequence[Path] = ()

    def allowed(self, path: Path) -> Path:
        """Return the file that a path leads to, with links resolved. Ask before every opening. Raises NotThere."""
        try:
            file = path.resolve()
            roots = [root.resolve() for root in self.roots]
            inside = [root for root in roots if file.is_relative_to(root)]
            if not inside:
                raise NotThere(f"{file} is in no folder of DESKWIRE_SQLITE_ROOT")
            for folder in (each.resolve() for each in self.own):
                deeper = any(root != folder and root.is_relative_to(folder) for root in inside)
                if file.is_relative_to(folder) and not deeper:
                    raise NotThere(f"{file} is in the suite's own folder {folder}")
            if not stat.S_ISREG(file.stat().st_mode):
                raise NotThere(f"{file} is no regular file")
        except (OSError, RuntimeError, ValueError) as error:
            # RuntimeError: a circle of links; ValueError: a NUL in the path.
            raise NotThere(str(error)) from None
        return file


def refuse_own(connection: sqlite3.Connection, file: Path) -> None:
    """Refuse a database of the suite's own, whatever link leads to it. It only reads. Raises NotThere."""
    found = connection.execute(
        "SELECT name FROM sqlite_master WHERE name GLOB ?", (_OWN_TABLE,)
    ).fetchone()
    if found is not None:
        raise NotThere(f"{file} is a database of deskwire's: it has the table {found[0]}")
