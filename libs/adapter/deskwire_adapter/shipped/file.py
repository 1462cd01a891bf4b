"""Events as lines of JSON in files that are rotated. DELIVERED means that the disk has them."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final

from deskwire_adapter import (
    DELIVERED,
    AdapterBase,
    CredentialsRefused,
    Incoming,
    Login,
    Result,
    Session,
    rejected,
    retry,
)
from deskwire_adapter.shipped.folders import NAME_PATTERN, file_in, tenant_folder

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
_FULL_SECONDS: Final = 60.0


class _File:
    """One file and its older ones. All sessions that write it share it: two writers would tear each other's lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self._file: Any = None
        self._opened = 0.0

    def append(self, lines: bytes, most: int, seconds: float, keep: int, now: float) -> None:
        """Write whole lines, and wait until the disk has them. Raises OSError; then none of them counts."""
        file = self._open()
        size = file.seek(0, os.SEEK_END)
        old = bool(seconds) and now - self._opened >= seconds
        if size and (size + len(lines) > most or old):
            self._rotate(keep)
            file = self._open()
            size = 0
        try:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            # What was written in part would be the beginning of the next line.
            self._cut(size)
            raise

    def close(self) -> None:
        """Close it."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _open(self) -> Any:
        if self._file is None:
            # O_NOFOLLOW: what turned into a link since it was looked at isn't followed.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            number = os.open(self.path, flags, 0o600)
            self._file = os.fdopen(number, "r+b", buffering=0)
            self._mend()
            self._opened = os.fstat(number).st_mtime
            _sync_folder(self.path.parent)
        return self._file

    def _mend(self) -> None:
        """Cut off the part of a line that a crash left: the hub sends its event again."""
        size = self._file.seek(0, os.SEEK_END)
        while size:
            start = max(0, size - 65_536)
            self._file.seek(start)
            block = self._file.read(size - start)
            end = block.rfind(b"\n")
            if end >= 0:
                size = start + end + 1
                break
            size = start
        self._file.truncate(size)

    def _cut(self, size: int) -> None:
        file, self._file = self._file, None
        try:
            file.truncate(size)
        finally:
            file.close()

    def _rotate(self, keep: int) -> None:
        self.close()
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self.path.rename(self.path.with_name(f"{self.path.name}.{stamp}"))
        older = sorted(self.path.parent.glob(f"{self.path.name}.*Z"))
        for path in older[: max(0, len(older) - keep)]:
            path.unlink()


class FileAdapter(AdapterBase):
    """`python:file`: each event is a line, the JSON form as the hub sent it.

    The file is `NAME.jsonl` in the tenant's folder below DESKWIRE_ADAPTER_ROOT; older ones have the time at which they
    were closed behind their name. A line may be there twice after a crash or a lost answer: its event_id tells.
    """

    program = "file/1"
    config_schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": NAME_PATTERN},
            "max_bytes": {"type": "integer", "minimum": 4096, "maximum": 1 << 34},
            "max_seconds": {"type": "integer", "minimum": 0},
            "keep": {"type": "integer", "minimum": 1, "maximum": 10_000},
        },
        "required": ["name"],
        "additionalProperties": False,
    }

    def __init__(self) -> None:
        self._files: dict[Path, _File] = {}
        self._lock = threading.Lock()

    def auth(self, login: Login) -> Session:
        """The tenant's folder must be there, and writable."""
        self._file(login)
        return Session(login)

    def push(self, session: Session, events: Sequence[Incoming]) -> Sequence[Result]:
        """Write all lines with one fsync."""
        config = session.login.config
        lines, results = [], []
        for event in events:
            line = event.json.replace("\n", " ").encode(errors="replace")
            whole = bool(event.json) and len(line) < config.get("max_bytes", 64 << 20)
            if whole:
                lines.append(line + b"\n")
            results.append(DELIVERED if whole else rejected("it has no JSON form of this size"))
        file = self._file(session.login)
        try:
            with file.lock:
                file.append(
                    b"".join(lines),
                    config.get("max_bytes", 64 << 20),
                    config.get("max_seconds", 0),
                    config.get("keep", 100),
                    datetime.now(UTC).timestamp(),
                )
        except OSError as error:
            after = _FULL_SECONDS if error.errno in _FULL else None
            return [retry(f"the file can't be written: {error.strerror}", after)] * len(events)
        return results

    def check(self, session: Session) -> str:
        """The disk must have room for a line."""
        folder = self._file(session.login).path.parent
        room = os.statvfs(folder)
        return "" if room.f_bavail * room.f_frsize > 1 << 20 else "the disk is full"

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            with file.lock:
                file.close()

    def _file(self, login: Login) -> _File:
        name = login.config.get("name")
        if not isinstance(name, str):
            raise CredentialsRefused("name is missing in the configuration")
        folder = tenant_folder(login.tenant_id)
        path = file_in(folder, f"{name}.jsonl")
        if not os.access(folder, os.W_OK):
            raise CredentialsRefused("the tenant's folder can't be written")
        with self._lock:
            return self._files.setdefault(path, _File(path))


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
