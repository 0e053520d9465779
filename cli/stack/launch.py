"""Becomes the process it is asked for, once the supervisor has written down its pid.

Run as a script with the standard library alone: `launch.py UID READS PARENT SIGNAL COMMAND…`. It waits for one
byte on standard input. The supervisor sends it after the pid is in state.json, so a supervisor that is killed
in between leaves either a recorded process or none, never one that nobody knows of.

UID: user to become, or -1 to stay. READS: 1 if that user may read whatever root may. PARENT: pid of the
supervisor. SIGNAL: what the kernel sends to the process when the supervisor dies, or 0 for a process that
outlives it.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 47, 2
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_READ_SEARCH = 2


def main() -> None:
    """Wait for the word, drop privileges, tie to the parent, and become COMMAND."""
    uid, reads_all, parent, death_signal = (int(argument) for argument in sys.argv[1:5])
    command = sys.argv[5:]
    if not os.read(0, 1):
        sys.exit(1)  # the supervisor died before it wrote the pid down
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if uid >= 0:
        become(uid, reads_all=bool(reads_all))
    if death_signal and sys.platform == "linux":
        # After setuid, because a change of user clears the setting.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:
            sys.exit(1)
    os.execv(command[0], command)


def become(uid: int, *, reads_all: bool) -> None:
    """Become the user, who keeps no right of root's but, if asked for, the one to read.

    Raises:
        OSError: this process has no such right.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if reads_all:
        libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    if not reads_all:
        return
    # Effective, permitted and inheritable, 32 capabilities each and then the next 32; ambient is what exec leaves.
    rights = (ctypes.c_uint32 * 6)(*[1 << CAP_DAC_READ_SEARCH] * 3, 0, 0, 0)
    version = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    if libc.capset(version, rights) or libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_READ_SEARCH, 0, 0):
        raise OSError(ctypes.get_errno(), "the right to read cannot be kept")


if __name__ == "__main__":
    main()
