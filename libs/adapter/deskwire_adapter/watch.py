"""Who hears of calls: in a server of one's own nobody, in a child of the hub what ends a process that hangs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Watch:
    """Hears of calls, and does nothing."""

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call of the adapter's code is under way while the block runs."""
        yield

    def out_of_memory(self) -> None:
        """The adapter ran into its memory limit."""
