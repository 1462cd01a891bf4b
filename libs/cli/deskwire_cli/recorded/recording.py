"""The recording that is played or imported: the file, read again for each step, and only while it stays as it was."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

from deskwire_cli.machine.problem import Problem
from deskwire_cli.recorded.dialogues import Dialogue, Rules, dialogues_of
from deskwire_cli.recorded.oddities import Balance


class Recording:
    """The dialogues of a file that aren't left out."""

    def __init__(self, path: Path, rules: Rules, balance: Balance) -> None:
        """`balance` is what reading the file first gave."""
        self.balance = balance
        self._first = deepcopy(balance)
        self._path = path
        self._rules = rules

    def __iter__(self) -> Iterator[Dialogue]:
        """Yield the dialogues, from the file. Raises Problem, at its end too, when the file isn't the same any more."""
        again = Balance()
        yield from dialogues_of(self._path, self._rules, again)
        if again != self._first:
            raise Problem(f"{self._path} was changed while it was read")
