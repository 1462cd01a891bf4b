"""Attachments in a directory, which `http` serves to clients.

`incoming/<id>` is an upload that is complete and as declared; `objects/<xx>/<id>` is one that CompleteAttachment took.
Several chat processes must share one directory. All I/O runs on threads of the store's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from deskwire_chat.attachments.base import Signed
from deskwire_chat.attachments.signing import UrlSigner
from deskwire_chat.domain.attachments import Attachment, not_uploaded
from deskwire_common.errors import Unavailable
from deskwire_common.logging import get_logger

T = TypeVar("T")

_THREADS: Final = 4


class NotAsDeclared(ValueError):
    """An upload differs from what was declared; the message says how."""


class Upload:
    """One file that is being uploaded; nothing of it is visible before `commit`."""

    def __init__(self, folder: Folder, target: Path, size: int, sha256: str) -> None:
        self._folder = folder
        self._target = target
        self._part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
        self._size = size
        self._sha256 = sha256
        self._digest = hashlib.sha256()
        self._written = 0
        # `abort` may be called while a write still runs on its thread.
        self._lock = threading.Lock()
        self._descriptor = -1
        self._over = False

    async def write(self, data: bytes) -> None:
        """Add bytes. Raises NotAsDeclared when there are too many, OSError."""
        await self._folder.on_thread(self._write, data)

    async def commit(self) -> None:
        """Sync the file to disk, and give it its name. Raises NotAsDeclared, OSError."""
        await self._folder.on_thread(self._commit)

    def abort(self) -> None:
        """Remove the file; returns at once."""
        self._folder.later(self._abort)

    def _write(self, data: bytes) -> None:
        with self._lock:
            if self._over:
                return
            self._written += len(data)
            if self._written > self._size:
                raise NotAsDeclared(f"more than the declared {self._size} bytes")
            if self._descriptor < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self._descriptor = os.open(self._part, flags, 0o600)
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
            self._digest.update(data)

    def _commit(self) -> None:
        with self._lock:
            if self._over:
                return
            if self._written != self._size:
                raise NotAsDeclared(f"{self._written} bytes in place of the declared {self._size}")
            if self._sha256 and self._digest.hexdigest() != self._sha256:
                raise NotAsDeclared("another SHA-256 than the declared one")
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._over = True
            self._part.replace(self._target)
            _sync_folder(self._target.parent)

    def _abort(self) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._part.unlink(missing_ok=True)


class Folder:
    """The files of attachments; see the module."""

    def __init__(self, root: Path) -> None:
        self._incoming = root / "incoming"
        self._objects = root / "objects"
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="attachments")

    async def open(self) -> None:
        """Make the folders. Raises OSError when that fails."""
        await self.on_thread(self._open)

    def close(self) -> None:
        """Let the threads finish."""
        self._pool.shutdown()

    async def on_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run a call that blocks on a thread, and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def later(self, work: Callable[[], object]) -> None:
        """Run a call that blocks on a thread, without waiting for it."""
        with contextlib.suppress(RuntimeError):  # this process stops: `sweep` finds what is left
            self._pool.submit(work)

    async def promote(self, item: Attachment) -> None:
        """See AttachmentStore. Files in `incoming` were checked when they were uploaded."""
        await self._guarded(self._promote, item)

    async def remove(self, item: Attachment) -> None:
        """See AttachmentStore."""
        await self._guarded(self._remove, item)

    async def sweep(self, *, before: float) -> int:
        """See AttachmentStore."""
        return await self._guarded(self._sweep, before)

    def object_path(self, attachment_id: str) -> Path:
        """Return where the bytes of a READY attachment are; the id must be one that chat made."""
        # The end of a UUIDv7 is random, while its beginning is the time.
        return self._objects / attachment_id[-2:] / attachment_id

    def receive(self, attachment_id: str, *, size: int, sha256: str) -> Upload:
        """Begin an upload of `size` bytes; the id must be one that chat made."""
        return Upload(self, self._incoming / attachment_id, size, sha256)

    async def _guarded(self, work: Callable[..., T], *arguments: Any) -> T:
        try:
            return await self.on_thread(work, *arguments)
        except OSError as error:
            get_logger().error("attachments_folder_failed", error=str(error))
            raise Unavailable(
                "the folder of attachments can't be used now; try again", retry_after=1.0
            ) from error

    def _open(self) -> None:
        for folder in (self._incoming, self._objects):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = self._incoming / f".{secrets.token_hex(8)}.part"
        probe.touch(0o600)
        probe.unlink()

    def _promote(self, item: Attachment) -> None:
        target = self.object_path(item.attachment_id)
        uploaded = self._incoming / item.attachment_id
        if _size(target) == item.size_bytes:
            uploaded.unlink(missing_ok=True)
            return
        found = _size(uploaded)
        if found != item.size_bytes:
            raise not_uploaded(
                "nothing was uploaded" if found < 0 else f"{found} bytes were uploaded"
            )
        target.parent.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(self._objects)
        try:
            uploaded.replace(target)
        except FileNotFoundError:
            # The same call may run twice at once.
            if _size(target) != item.size_bytes:
                raise
        _sync_folder(target.parent)

    def _remove(self, item: Attachment) -> None:
        for path in (self._incoming / item.attachment_id, self.object_path(item.attachment_id)):
            path.unlink(missing_ok=True)

    def _sweep(self, before: float) -> int:
        removed = 0
        with os.scandir(self._incoming) as entries:
            for entry in entries:
                # Another process may have been quicker.
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_mtime < before:
                        Path(entry.path).unlink()
                        removed += 1
        return removed


class DirectoryStore:
    """The AttachmentStore of a folder, which an HTTP side serves at the signer's URLs."""

    def __init__(self, folder: Folder, signer: UrlSigner) -> None:
        self._folder = folder
        self._signer = signer

    async def upload(
        self, attachment_id: str, *, content_type: str, size: int, sha256: str, seconds: int
    ) -> Signed:
        """See AttachmentStore."""
        declared = {"size": str(size), "type": content_type, "sha256": sha256}
        url = self._signer.sign("PUT", attachment_id, declared, seconds=seconds)
        headers = {"Content-Type": content_type, "Content-Length": str(size)}
        return Signed("PUT", url, headers)

    async def download(self, item: Attachment, *, seconds: int) -> Signed:
        """See AttachmentStore."""
        shown = {"name": item.file_name, "type": item.content_type}
        return Signed("GET", self._signer.sign("GET", item.attachment_id, shown, seconds=seconds))

    async def promote(self, item: Attachment) -> None:
        """See AttachmentStore."""
        await self._folder.promote(item)

    async def remove(self, item: Attachment) -> None:
        """See AttachmentStore."""
        await self._folder.remove(item)

    async def sweep(self, *, before: float) -> int:
        """See AttachmentStore."""
        return await self._folder.sweep(before=before)


def _size(path: Path) -> int:
    """Return a file's size; -1: there is no file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _sync_folder(folder: Path) -> None:
    """Sync a folder to disk: a new name is only there once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
