"""Where a file's reader goes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Position:
    """A change's number, and the file that it is of."""

    number: int
    inode: int = 0
    """Of the file; 0: not known yet. Without the device, whose number changes when a disk is mounted anew."""

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read `4711@1234`, or `4711`."""
        number, _, inode = text.partition("@")
        return cls(int(number), int(inode or 0))

    def text(self) -> str:
        """Return the form that is saved."""
        return f"{self.number}@{self.inode}" if self.inode else str(self.number)
