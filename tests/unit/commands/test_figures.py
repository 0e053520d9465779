"""What a stack takes of the machine, measured."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from cli.stack.disk import FULL_BYTES, NEARLY_FULL_BYTES, disk_alarms, free_bytes
from cli.stack.figures import BASELINE_S_MIN, FILE, disk_bytes, growth_since, measure
from cli.stack.processes import ProcessRecord, start_time
from cli.stack.state import DataDir, State

AT_S = 1_767_323_045.0


def test_growth_is_since_a_measurement_that_is_old_enough(tmp_path: Path) -> None:
    """The first has none, those of the first minute neither; who looks often is told since the one before that."""
    file, minute_s = tmp_path / FILE, BASELINE_S_MIN
    assert growth_since(file, 1_000, AT_S) == (None, None)
    assert growth_since(file, 9_000, AT_S + 1.0) == (None, None)
    assert growth_since(file, 1_500, AT_S + minute_s) == (500.0, AT_S)
    assert growth_since(file, 2_000, AT_S + 1.25 * minute_s) == (800.0, AT_S)
    assert growth_since(file, 3_500, AT_S + 2 * minute_s) == (2_000.0, AT_S + minute_s)


def test_growth_survives_what_its_file_may_hold(tmp_path: Path) -> None:
    """A damaged file, or a clock that was put back, is a first measurement; a folder that takes no file is no error."""
    file = tmp_path / FILE
    for damage in ("{", "7", "[[1]]", "{}"):
        file.write_text(damage)
        assert growth_since(file, 1_000, AT_S) == (None, None)
    assert growth_since(file, 2_000, AT_S - 10.0) == (None, None)
    assert growth_since(file, 2_600, AT_S + 50.0) == (600.0, AT_S - 10.0)
    assert growth_since(tmp_path / "none" / FILE, 1, AT_S) == (None, None)


def test_disk_is_what_files_take_and_not_what_they_say(tmp_path: Path) -> None:
    """A sparse file takes next to nothing, also where it says a gigabyte; a folder that is not there takes nothing."""
    (tmp_path / "below").mkdir()
    with (tmp_path / "below" / "sparse").open("wb") as file:
        file.truncate(2**30)
    written = tmp_path / "written"
    written.write_bytes(os.urandom(100_000))
    with written.open("rb") as file:
        os.fsync(file.fileno())
    assert 100_000 <= disk_bytes(tmp_path) < 2**20
    assert disk_bytes(tmp_path / "none") == 0


def test_memory_of_what_runs_is_measured(tmp_path: Path) -> None:
    """Of each process that state.json names and that runs; what was named and is gone has none."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        records = {
            "decision": ProcessRecord(child.pid, start_time(child.pid) or ""),
            "consent": ProcessRecord(child.pid, "another boot/1"),
        }
        DataDir(tmp_path).write(State("a", processes=records))
        figures = asyncio.run(measure(tmp_path, now_s=AT_S))
        child.communicate(b"")
    assert figures.memory_bytes.keys() == {"decision"}
    assert 1_000_000 < figures.memory_bytes["decision"] < 1_000_000_000
    assert (figures.decision_bytes, figures.growth_bytes_per_minute) == (None, None)


def test_disk_of_others_servers_is_left_out_where_it_is_not_known(tmp_path: Path) -> None:
    """A database that is silent for a while has not shrunk, and does not grow when it answers again."""
    gone = {"decision": "postgresql://u:p@127.0.0.1:1/decision"}
    DataDir(tmp_path).write(State("a", external=["nats", "postgres", "valkey"], databases=gone))
    (tmp_path / FILE).write_text(json.dumps([[AT_S - 2 * BASELINE_S_MIN, 1_000_000]]))
    figures = asyncio.run(measure(tmp_path, now_s=AT_S))
    assert figures.disk_bytes.keys() == {"logs", "traces", "journal"}
    assert (figures.growth_bytes_per_minute, figures.since) == (None, "")
    assert len(json.loads((tmp_path / FILE).read_text())) == 1


def test_disk_without_room_is_an_alarm_with_the_place(tmp_path: Path) -> None:
    """Soon, and when it is there; one for a file system, however many folders lie on it; none where there is room."""
    folders = [tmp_path, tmp_path / "none", tmp_path]
    assert disk_alarms(folders, free_bytes_of=lambda _: NEARLY_FULL_BYTES) == ()
    (soon,) = disk_alarms(folders, free_bytes_of=lambda _: NEARLY_FULL_BYTES - 1)
    (now,) = disk_alarms(folders, free_bytes_of=lambda _: FULL_BYTES - 1)
    assert (soon.name, now.name) == ("disk_nearly_full", "disk_full")
    assert all(str(tmp_path) in alarm.sentence and alarm.remedy for alarm in (soon, now))
    assert free_bytes(tmp_path) > 0
