"""Logs of a stack: set aside every day, and gone when a receipt says so."""

import os
import time
from pathlib import Path

import pytest

from cli.stack.log_files import is_due, turn_over
from services.chassis.old_files import DAY_S, KEPT_DAYS
from services.consent.domain.receipts import HORIZON_DAYS

NOW_S = time.time()


def last_written(path: Path, days_ago: float, text: str = "line\n") -> Path:
    """A file that was changed so long ago."""
    path.write_text(text)
    os.utime(path, (NOW_S - days_ago * DAY_S,) * 2)
    return path


def test_receipts_name_what_is_deleted_by() -> None:
    """The horizon that is signed is the one that files are deleted by."""
    assert HORIZON_DAYS["logs"] == HORIZON_DAYS["traces"] == KEPT_DAYS


def test_old_logs_are_deleted_and_young_ones_stay(tmp_path: Path) -> None:
    """A file that may hold a line of two weeks ago goes, also one that was set aside for its size."""
    gone = [last_written(tmp_path / name, 12.1) for name in ("decision.2026-01-01.log", "postgres.1.log")]
    kept = last_written(tmp_path / "decision.2026-01-02.log", 11.9)
    turn_over(tmp_path, NOW_S)
    assert [path.name for path in gone if path.exists()] == []
    assert kept.exists()


def test_log_is_set_aside_once_a_day_while_its_process_writes_on(tmp_path: Path) -> None:
    """No line is lost, and the process that holds the file open goes on writing to the emptied one."""
    log = tmp_path / "decision-2.log"
    with log.open("ab", buffering=0) as process:
        process.write(b"first\n")
        turn_over(tmp_path, NOW_S)
        assert log.read_bytes() == b""
        process.write(b"second\n")
        turn_over(tmp_path, NOW_S + DAY_S / 2)
        assert log.read_bytes() == b"second\n"
        turn_over(tmp_path, NOW_S + DAY_S)
    aside = sorted(tmp_path.glob("decision-2.*.log"))
    assert [path.read_bytes() for path in aside] == [b"first\n", b"second\n"]


def test_a_disk_that_is_full_is_tried_once_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails half way is not begun again twice a second."""
    (tmp_path / "nats.log").write_text("line\n")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space"):
        turn_over(tmp_path, NOW_S)
    assert (tmp_path / "nats.log").read_text() == "line\n"
    assert not is_due(tmp_path, NOW_S)
