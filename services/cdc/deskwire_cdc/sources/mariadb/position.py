"""Where a binlog's reader goes on."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Position:
    """Where to go on: a GTID per domain, and rows done of the transaction after them."""

    done: dict[str, str] = field(default_factory=dict)
    """Domain id → GTID of the last whole transaction."""
    partial_gtid: str = ""
    partial_rows: int = 0
    file: str = ""
    """The binlog file in which the last whole transaction ends; empty: not known yet."""
    offset: int = 0
    """Where it ends there: what shows that a server's binlog is still the same one."""

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read `0-1-56,7-1-3`, `…+0-1-57:3` and `…@binlog.000007:4711`; empty: the binlog's beginning."""
        log, _, place = text.partition("@")
        whole, _, partial = log.partition("+")
        gtid, _, rows = partial.partition(":")
        file, _, offset = place.rpartition(":")
        return cls(gtids(whole), gtid, int(rows or 0), file, int(offset or 0))

    def gtid_set(self) -> str:
        """Return the GTID set for the server."""
        return ",".join(self.done.values())

    def text(self) -> str:
        """Return the form that is saved."""
        partial = f"+{self.partial_gtid}:{self.partial_rows}" if self.partial_gtid else ""
        place = f"@{self.file}:{self.offset}" if self.file else ""
        return f"{self.gtid_set()}{partial}{place}"


def gtids(text: str) -> dict[str, str]:
    """Return a GTID set by domain."""
    return {gtid.split("-", 1)[0]: gtid for gtid in text.split(",") if gtid}
