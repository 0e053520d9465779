"""Room on the disks that a stack writes to, and what to do where it comes to an end."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from cli.stack.probe import StandingAlarm

# Postgres' log of changes alone takes up to 2 GB between two checkpoints (cli.stack.postgres).
NEARLY_FULL_BYTES = 2**30
# With less NATS and Postgres refuse what they are to store.
FULL_BYTES = 64 * 2**20


def free_bytes(folder: Path) -> int:
    """What this user may still write in the folder's file system."""
    return shutil.disk_usage(folder).free


def disk_alarms(
    folders: Iterable[Path], *, free_bytes_of: Callable[[Path], int] = free_bytes
) -> tuple[StandingAlarm, ...]:
    """An alarm for each file system below the folders that has little room left; those that are not there have none."""
    by_device = {folder.stat().st_dev: folder for folder in folders if folder.exists()}
    found = ((folder, free_bytes_of(folder)) for folder in by_device.values())
    return tuple(_alarm(folder, free) for folder, free in found if free < NEARLY_FULL_BYTES)


def _alarm(folder: Path, free: int) -> StandingAlarm:
    is_full = free < FULL_BYTES
    so = "nothing more is recorded, and every Decide answers its default" if is_full else "services stop recording soon"
    return StandingAlarm(
        "disk_full" if is_full else "disk_nearly_full",
        f"{free / 1e6:,.0f} MB are left on the disk of {folder}: {so}.",
        "Make room there, or `comity down`, move the folder to a larger disk, and `comity up`.",
        "",
    )
