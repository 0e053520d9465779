"""Which users the processes of root's stack are: none of them is root, where the machine allows it."""

import os
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import services

LAUNCHER = Path(__file__).with_name("launch.py")
# Postgres refuses to be root. 65534 is `nobody` on every Linux; the number works where no name is known.
POSTGRES_UID = 65534
# All others, as in a cluster.
SERVICE_UID = 65532


def is_root() -> bool:
    """Whether this process may become another user."""
    return os.geteuid() == 0


@cache
def service_uid() -> int | None:
    """User that services, NATS and Valkey of this stack are; None: the one who asks.

    Interpreter and code often lie under a home that nobody else may enter, so this user may read everything, and write
    and do no more than any other. Where that right cannot be given (some containers), they stay root.
    """
    if not is_root() or sys.platform != "linux":
        return None
    tried = subprocess.run(
        [*launcher(SERVICE_UID, reads_all=True), sys.executable, "-c", "import services.chassis"],
        cwd=Path(services.__file__).parents[1],
        input=b"g",
        capture_output=True,
        timeout=60,
    )
    return None if tried.returncode else SERVICE_UID


def launcher(uid: int | None, *, reads_all: bool = False, death_signal: int = 0) -> tuple[str, ...]:
    """What stands before a command, so that it runs as that user; see launch.py."""
    numbers = (-1 if uid is None else uid, int(reads_all), os.getpid(), death_signal)
    return (sys.executable, "-I", "-S", str(LAUNCHER), *map(str, numbers))


def give(folder: Path, uid: int) -> None:
    """Make the user the owner of the folder, which is made where it is missing, and of all that is in it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (folder, *folder.rglob("*")):
        # What another process takes away meanwhile needs no owner.
        with suppress(FileNotFoundError):
            if path.lstat().st_uid != uid:
                os.chown(path, uid, uid, follow_symlinks=False)
