"""Problems: errors that a person reads as one line, without a traceback."""

from __future__ import annotations


class Problem(Exception):
    """Something on this machine is not as needed; the message is one line that tells what to do."""
