"""What every kind of source can do: the port that the rest of change capture knows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deskwire_cdc.domain.changes import Batch, Change
from deskwire_cdc.domain.sources import Source
from deskwire_common.clock import Clock
from deskwire_common.targets import Targets


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    """What readers need besides the source."""

    clock: Clock
    targets: Targets
    """Which addresses may be called."""
    roots: Sequence[Path] = ()
    """Folders whose files may be opened; none: no files."""
    own: Sequence[Path] = ()
    """The suite's folders, whose files may not be."""
    max_batch: int = 500
    """Most row changes per batch."""
    mark_domain_id: int = 7410
    """MariaDB: transactions of this gtid_domain_id are an adapter's own writes, and dropped."""
    poll_seconds: float = 0.05
    """SQLite: how often data_version is looked at."""
    max_change_bytes: int = 256_000_000
    """SQLite: bytes of changes that may wait in the owner's file while capture is away; more end it."""
    heartbeat_seconds: float = 1.0
    """MariaDB: seconds between the heartbeats of an idle server."""
    connect_timeout: float = 5.0
    read_timeout: float = 30.0
    """MariaDB: silence longer than this is a dead connection."""


@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """Rows that were there before capture began."""

    changes: Sequence[Change]
    cursor: str
    """Where the next chunk begins; empty: that was the last."""


class Reader(ABC):
    """Reads one external database. Its methods raise SourceUnusable, which names the setting to change, and
    SourceUnreachable when it is worth another try; a driver's own errors stay inside.
    """

    def __init__(self, source: Source, options: ReaderOptions) -> None:
        self.source = source
        self.options = options

    @abstractmethod
    async def check(self) -> None:
        """Refuse a database that would lose changes silently. It only reads."""

    @abstractmethod
    async def start_position(self) -> str:
        """Return where a new source begins: all that is committed afterwards will be read. It only reads."""

    @abstractmethod
    async def install(self) -> None:
        """Put whatever is needed into the external database. A second call changes nothing."""

    @abstractmethod
    async def remove(self) -> None:
        """Remove what `install` put there. A second call changes nothing."""

    @abstractmethod
    def first_cursor(self) -> str:
        """Return the cursor of the first snapshot chunk.

        Empty when the reader brings its snapshot within the stream.
        """

    @abstractmethod
    async def snapshot_chunk(self, cursor: str, position: str) -> SnapshotChunk:
        """Return the rows from a cursor on, as they are now."""

    @abstractmethod
    def batches(self, position: str) -> AsyncGenerator[Batch, None]:
        """Yield everything after a position, in log order, without end."""

    @abstractmethod
    async def confirm(self, position: str) -> None:
        """Note that everything up to a position is delivered and saved: the source may forget it."""

    @abstractmethod
    async def close(self) -> None:
        """Close connections and end threads."""


@dataclass(frozen=True, slots=True)
class SourceKind:
    """One kind of source. A package beside this module has it as its `KIND`."""

    name: str
    """As sources are stored with it; the contract's SOURCE_KIND_<NAME>."""
    check_url: Callable[[str], object]
    """Raises InvalidArgument with the field `source.url`; never with the password in its text."""
    reader: Callable[[Source, ReaderOptions], Reader]
    """Connects only when it is used."""
    operators_only: bool = False
    """Its urls say something about this machine: integrations may not create or delete such sources."""
