"""Folders for the data of a test process's servers: in memory, and gone when the process is."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_ROOM: Final = 4 * 1024**3
"""Bytes that must be free in memory; the servers of one process take less than a twentieth of them."""

_PREFIX: Final = "deskwire-tests-"
_OWNER: Final = "owner"
"""A file that the process which owns the folder keeps locked."""


@contextmanager
def data_folder() -> Iterator[Path]:
    """Yield an empty folder, removed after the block; other users may pass through it, as databases run as those.

    A folder that a killed process left is removed when the next process begins.
    """
    base = _base()
    for left in base.glob(f"{_PREFIX}*/{_OWNER}"):
        _clear(left)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        with (folder / _OWNER).open("w") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            if not (folder / _OWNER).exists():  # removed as one that was left, before it was locked
                continue
            folder.chmod(0o711)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


def _base() -> Path:
    """Return a folder in memory, where a commit waits for no disk; one on disk where memory has none or is small.

    A fifth of the tests' time was such waiting, most of it MariaDB's for new tables. Tests kill processes and never
    the machine, so memory keeps as much as the page cache of a disk would.
    """
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= _ROOM:
        return memory
    return Path(tempfile.gettempdir())


def _clear(left: Path) -> None:
    """Remove a folder whose owner has died."""
    try:
        with left.open() as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent, ignore_errors=True)
    except OSError:
        return  # another process owns it, or it is gone
