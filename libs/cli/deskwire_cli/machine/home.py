"""The folder that holds all state of one machine's suite; removing it is a full reset."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deskwire_cli.machine.problem import Problem
from deskwire_common.auth import KeysError, KeySet

VARIABLE: Final = "DESKWIRE_HOME"
MIN_FREE_BYTES: Final = 256 * 1024 * 1024
"""Bytes of free disk below which the suite doesn't start: Kafka stops by itself when its disk is full."""


def project_root() -> Path:
    """The checkout that this program was installed from; the working directory when there is none."""
    root = Path(__file__).resolve().parents[4]
    return root if (root / "protos").is_dir() and (root / "uv.lock").is_file() else Path.cwd()


@dataclass(frozen=True, slots=True)
class Home:
    """`$DESKWIRE_HOME`: databases/, attachments/, adapters/, crm/, kafka/, valkey/, logs/, run/, keys.json."""

    root: Path

    @classmethod
    def find(cls, given: Path | str | None = None) -> Home:
        """The given folder, else $DESKWIRE_HOME, else `.deskwire` in the project's root."""
        chosen = given or os.environ.get(VARIABLE) or project_root() / ".deskwire"
        return cls(Path(chosen).expanduser().absolute())

    @property
    def databases(self) -> Path:
        return self.root / "databases"

    @property
    def attachments(self) -> Path:
        return self.root / "attachments"

    @property
    def adapters(self) -> Path:
        """Where adapters that the hub runs keep their files."""
        return self.root / "adapters"

    @property
    def crm(self) -> Path:
        return self.root / "crm"

    @property
    def kafka(self) -> Path:
        return self.root / "kafka"

    @property
    def valkey(self) -> Path:
        return self.root / "valkey"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def keys_file(self) -> Path:
        return self.root / "keys.json"

    @property
    def state_file(self) -> Path:
        return self.run / "state.json"

    def log(self, process: str) -> Path:
        return self.logs / f"{process}.log"

    def pid_file(self, process: str) -> Path:
        return self.run / f"{process}.pid"

    def prepare(self) -> None:
        """Make the folders and, the first time, the signing key. Raises Problem. Blocks briefly."""
        try:
            # Databases and keys: other users mustn't read them.
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (
                self.databases,
                self.attachments,
                self.adapters,
                self.crm,
                self.kafka,
                self.valkey,
                self.logs,
                self.run,
            ):
                folder.mkdir(mode=0o700, exist_ok=True)
            free = shutil.disk_usage(self.root).free
            if free < MIN_FREE_BYTES:
                raise Problem(
                    f"the disk of {self.root} is full: {free // 2**20} MB are free, "
                    f"{MIN_FREE_BYTES // 2**20} MB are needed"
                )
            if not self.keys_file.exists():
                KeySet.generate().save(self.keys_file)
            KeySet.load(self.keys_file)
        except KeysError as error:
            raise Problem(str(error)) from None
        except OSError as error:
            raise Problem(f"can't use {self.root}: {os_error(error)}") from None

    def database_url(self, service: str) -> str:
        """The service's SQLite file."""
        return f"sqlite:///{self.databases / service}.db"

    def write_state(self, state: dict[str, Any]) -> None:
        """Replace state.json whole; only the owner may read it."""
        write_atomically(self.state_file, json.dumps(state, indent=2) + "\n")

    def read_state(self) -> dict[str, Any]:
        """What the last `deskwire up` here wrote; empty before the first. Raises Problem."""
        try:
            state = json.loads(self.state_file.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise Problem(f"can't read {self.state_file}: {error}") from None
        return state if isinstance(state, dict) else {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the only `deskwire up` of this home. Raises Problem when another runs."""
        with (self.run / "up.lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Problem(
                    f"a suite is already running in {self.root}: `deskwire status` shows it, "
                    "`deskwire down` stops it"
                ) from None
            yield

    def is_locked(self) -> bool:
        """Whether a `deskwire up` runs in this home."""
        try:
            with (self.run / "up.lock").open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all, readable by the owner only."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def os_error(error: OSError) -> str:
    """Return one line for a person."""
    if error.errno == errno.ENOSPC:
        return "the disk is full"
    return error.strerror or str(error)
