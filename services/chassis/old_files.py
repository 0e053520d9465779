"""Files that are deleted by age: logs and traces, which a receipt of an erasure says are gone after two weeks.

Whoever writes such a file begins another one every day and looks once a day for what is old.
"""

from pathlib import Path

DAY_S = 86_400.0
# What receipts name (consent/domain/receipts.py, HORIZON_DAYS).
KEPT_DAYS = 14
# A file's first line is a day older than its last at most, and it may lie for a day before anybody looks.
_QUIET_S_MAX = (KEPT_DAYS - 2) * DAY_S


def delete_old(folder: Path, pattern: str, now_s: float, *, being_written: Path | None = None) -> None:
    """Delete the files of the folder that match and hold something that will soon be KEPT_DAYS old.

    Args:
        now_s: seconds since 1970.
        being_written: stays, whatever its age.
    """
    for path in folder.glob(pattern):
        try:
            if path != being_written and now_s - path.stat().st_mtime > _QUIET_S_MAX:
                path.unlink()
        except FileNotFoundError:
            continue  # another process was quicker
