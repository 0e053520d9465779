"""Work that may not end, or may end the process, done in a process of its own with limits.

The parent runs a module as a program and reads the lines that it says; the module calls `begin` when it is ready, and
says each line as soon as it is true, so that what ended the child is known by what it had not said yet.
"""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from services.chassis.errors import Kind, ServiceError

_STARTED = "started"
# Where Linux tells a process its own size, in pages; elsewhere memory is not limited.
_STATM = Path("/proc/self/statm")


@dataclass(frozen=True, slots=True)
class Said:
    """What a child said until it ended.

    Args:
        status: 0, or what it ended with; -N: by signal N.
    """

    lines: Sequence[str]
    status: int


def in_child(module: str, *arguments: str, data: bytes, timeout_s: float, reason: str) -> Said:
    """Run the module as a program that is given *data* on its standard input.

    It is told no setting of this process: what goes wrong in it must not know where the data is.

    Raises:
        ServiceError: UNAVAILABLE with this *reason*: no process could be had, it took longer than *timeout_s*, or it
            was killed, as by a machine without memory. That says something of the machine, and nothing of the data:
            what exceeds the child's own limits gets a MemoryError, or SIGXCPU.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COMITY_")}
    # One thread: the address space that libraries reserve for each would count as the child's own.
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    try:
        child = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=timeout_s,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServiceError(Kind.UNAVAILABLE, reason, "no process to try it in, or no time; try again") from error
    started, *lines = child.stdout.decode(errors="replace").splitlines() or [""]
    if started != _STARTED:
        raise ServiceError(Kind.UNAVAILABLE, reason, "the process that tries it did not start; try again")
    if -child.returncode == signal.SIGKILL:
        raise ServiceError(Kind.UNAVAILABLE, reason, "the process that tries it was killed; see that there is memory")
    return Said(lines, child.returncode)


def begin() -> None:
    """Of the child: from now on what happens is told, and is the data's doing."""
    # Where memory runs out it is this process that has to go, not the service beside it.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    say(_STARTED)


def say(line: str) -> None:
    """Of the child: tell the parent, now."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def limit_memory(more_bytes: int) -> None:
    """Of the child: let it have so much more address space than it has; what asks for more gets a MemoryError."""
    if _STATM.exists():
        held_bytes = int(_STATM.read_text().split()[0]) * resource.getpagesize()
        _limit(resource.RLIMIT_AS, held_bytes + more_bytes)


def limit_cpu(more_s: int) -> None:
    """Of the child: let it compute for so many seconds more; then the kernel ends it."""
    _limit(resource.RLIMIT_CPU, int(time.process_time()) + 1 + more_s)


def _limit(what: int, amount: int) -> None:
    """Set the limit, or the one of this machine where that is lower."""
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (amount if hard == resource.RLIM_INFINITY else min(amount, hard), hard))
