"""The end of a log in an error message: of this run, and no more than a screen."""

from pathlib import Path

from cli.stack.processes import LOG_TAIL_BYTES, log_bytes, log_tail


def test_what_earlier_runs_wrote_is_not_told(tmp_path: Path) -> None:
    """The reason of an earlier failure never stands for this one's, nor where this one wrote nothing."""
    log = tmp_path / "identity.log"
    log.write_text("the wrong setting of yesterday\n")
    before_bytes = log_bytes(log)
    assert log_tail(log, since_bytes=before_bytes) == ""
    with log.open("a") as file:
        file.write("the wrong setting of today\n")
    assert log_tail(log, since_bytes=before_bytes) == "the wrong setting of today"


def test_a_long_log_is_cut_and_a_missing_one_is_empty(tmp_path: Path) -> None:
    """Only the last of it helps; where there is no log there is nothing to tell."""
    log = tmp_path / "identity.log"
    assert log_bytes(log) == 0
    assert log_tail(log) == ""
    log.write_text("x" * (LOG_TAIL_BYTES + 1) + "end")
    assert len(log_tail(log)) == LOG_TAIL_BYTES
    assert log_tail(log).endswith("end")
