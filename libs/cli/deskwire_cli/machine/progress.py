"""Progress: output while something goes on."""

from __future__ import annotations

import sys


def say(line: str = "") -> None:
    """Print to stderr; stdout is for results."""
    print(line, file=sys.stderr, flush=True)
