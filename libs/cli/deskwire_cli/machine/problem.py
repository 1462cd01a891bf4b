"""What a person is told in one line, without a traceback."""

from __future__ import annotations


class Problem(Exception):  # noqa: N818 - what a person has to solve, not a fault of the program
    """Something on this machine is not as needed; the message is one line that says what to do."""
