"""Name servers of the tests' own: nothing that is asked here leaves this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class Names:
    """A resolver whose answers change: one for each time that it is asked, the last one from then on."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers: Iterator[Sequence[str]] = iter(answers)
        self._last: Sequence[str] = ()
        self.asked: list[str] = []

    def __call__(self, host: str) -> Sequence[str]:
        """The next answer."""
        self.asked.append(host)
        self._last = next(self._answers, self._last)
        return self._last
