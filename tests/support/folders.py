"""Where a test process's servers keep their data: in memory, and not for longer than the process lives."""

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
"""Bytes that must be free in the memory; the servers of one process take less than a twentieth."""

_PREFIX: Final = "deskwire-tests-"
_OWNER: Final = "owner"
"""A file that is locked while the process lives whose folder it is."""


@contextmanager
def data_folder() -> Iterator[Path]:
    """An empty folder while the block runs; others than the owner may pass, for databases run as other users.

    One that a killed process has left goes when the next one begins.
    """
    base = _base()
    for left in base.glob(f"{_PREFIX}*/{_OWNER}"):
        _clear(left)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        with (folder / _OWNER).open("w") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            if not (folder / _OWNER).exists():  # taken for one that was left, before it was locked
                continue
            folder.chmod(0o711)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


def _base() -> Path:
    """The memory, where a commit waits for no disk; the disk where there is no such folder or it is small.

    A fifth of the tests' time was such waiting, most of it MariaDB's for tables. Tests kill processes and never the
    machine, so the page cache would keep as much.
    """
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= _ROOM:
        return memory
    return Path(tempfile.gettempdir())


def _clear(left: Path) -> None:
    """Remove a folder whose owner is gone."""
    try:
        with left.open() as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent, ignore_errors=True)
    except OSError:
        return  # somebody's, or gone
