"""Becomes the process it is asked for, once the supervisor has written down its pid.

Run as a script with the standard library alone: `launch.py UID PARENT SIGNAL COMMAND…`. It waits for one
byte on standard input. The supervisor sends it after the pid is in state.json, so a supervisor that is killed
in between leaves either a recorded process or none, never one that nobody knows of.

UID: user to become, or -1 to stay. PARENT: pid of the supervisor. SIGNAL: what the kernel sends to the
process when the supervisor dies, or 0 for a process that outlives it.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Wait for the word, drop privileges, tie to the parent, and become COMMAND."""
    uid, parent, death_signal = (int(argument) for argument in sys.argv[1:4])
    command = sys.argv[4:]
    if not os.read(0, 1):
        sys.exit(1)  # the supervisor died before it wrote the pid down
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if uid >= 0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    if death_signal and sys.platform == "linux":
        # After setuid, because a change of user clears the setting.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:
            sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
