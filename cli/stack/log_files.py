"""Logs of a stack's processes: set aside every day, deleted by age.

A process goes on writing to the file that it was given, so a log is copied and emptied rather than renamed. What it
writes in the instant between both is lost, which a log can bear and a second protocol with eight programs is not worth.
"""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from services.chassis.old_files import DAY_S, delete_old

# Its time of change says when the logs were set aside last.
MARK = ".set-aside"


def is_due(logs: Path, now_s: float) -> bool:
    """Whether the logs were set aside a day ago or longer, or never."""
    try:
        return not 0.0 <= now_s - (logs / MARK).stat().st_mtime < DAY_S
    except FileNotFoundError:
        return logs.exists()


def turn_over(logs: Path, now_s: float) -> None:
    """Set every log aside under the date, and delete those of two weeks ago; nothing where it is not due.

    Args:
        now_s: seconds since 1970.
    """
    if not is_due(logs, now_s):
        return
    # First: what cannot be done today, on a full disk, is not tried twice a second.
    (logs / MARK).touch()
    os.utime(logs / MARK, (now_s, now_s))
    delete_old(logs, "*.*.log", now_s)
    date = datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%d")
    for log in logs.glob("*.log"):
        if "." not in log.stem and log.stat().st_size:
            _set_aside(log, log.with_suffix(f".{date}.log"))


def _set_aside(log: Path, aside: Path) -> None:
    with log.open("r+b") as source, aside.open("ab") as target:
        shutil.copyfileobj(source, target)
        source.truncate(0)
