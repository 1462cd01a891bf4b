"""`deskwire down`: stops what `deskwire up` started, in order."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Final

import psutil
import typer

from deskwire_cli.launch import DRAIN_SECONDS
from deskwire_cli.machine.home import Home
from deskwire_cli.machine.problem import Problem
from deskwire_cli.machine.progress import say

STOP_SECONDS: Final = 8 * DRAIN_SECONDS
"""Seconds: each part may use its whole drain time. Nearly always it takes 2 s in all."""


def down() -> None:
    """Stop the suite of $DESKWIRE_HOME; fine when none runs."""
    home = Home.find()
    if not home.is_locked():
        say(f"no suite runs in {home.root}")
        return
    stop(home)
    say("stopped")
    raise typer.Exit(0)


def stop(home: Home, seconds: float = STOP_SECONDS) -> None:
    """Ask the `deskwire up` of this home to stop and wait until it is gone. Raises Problem. Blocks."""
    pid = int(home.read_state().get("pid", 0))
    if pid <= 1:
        raise Problem(f"the suite in {home.root} is just starting: try again")
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while home.is_locked() or is_alive(pid):
        if time.monotonic() > deadline:
            # Its children end with it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            raise Problem(
                f"it didn't stop within {seconds:g} s and was killed (log: {home.log('up')})"
            )
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether the process is there and not just waiting to be collected by its parent."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
