"""Becomes another program that ends with its parent: `child.py PARENT_PID USER COMMAND…`.

Between fork and exec of the parent no Python code may run (the parent has threads of gRPC and librdkafka), so this
small program does the work: it first changes the user (which would clear the death signal) and then asks for the
signal. Run by path with `python -I -S`, it imports nothing of the project.
"""

import ctypes
import os
import pwd
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, user, *command = sys.argv[1:]
    if user:
        entry = pwd.getpwnam(user)
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    if sys.platform == "linux":
        # SIGKILL: a killed parent can't send SIGKILL after a SIGTERM, and every part here survives a power cut.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            sys.exit(1)  # the parent died before the signal was set
    try:
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)


main()
