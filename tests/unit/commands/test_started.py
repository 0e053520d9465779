"""What a process was started with, and in what it differs from one that would be started now."""

from pathlib import Path

from cli.stack.processes import ProcessRecord
from cli.stack.started import Started, StartedFile, differences, started_with
from cli.stack.state import SUPERVISOR

RECORD = ProcessRecord(7, "boot/1")
BEFORE = {
    "COMITY_IDENTITY_HOLDOUT_SALT": "a",
    "COMITY_IDENTITY_LOG_LEVEL": "info",
    "COMITY_CONSENT_X": "1",
    "HOME": "/",
}


def test_same_code_and_settings_differ_in_nothing() -> None:
    """What other services are told, and the rest of the environment, is none of its settings."""
    now = started_with("identity", RECORD, {**BEFORE, "COMITY_CONSENT_X": "2", "HOME": "/root"})
    assert differences(started_with("identity", RECORD, BEFORE), now) == []


def test_each_setting_that_changed_is_named_and_no_value_told() -> None:
    """Another value, one more, one less; a replica has its service's settings."""
    after = {"COMITY_IDENTITY_HOLDOUT_SALT": "hidden-word", "COMITY_IDENTITY_TRACE_RATIO": "0"}
    found = differences(started_with("identity-2", RECORD, BEFORE), started_with("identity-2", RECORD, after))
    assert found == [
        "COMITY_IDENTITY_HOLDOUT_SALT changed",
        "COMITY_IDENTITY_LOG_LEVEL is not set any more",
        "COMITY_IDENTITY_TRACE_RATIO is set",
    ]
    assert "hidden-word" not in str(started_with("identity", RECORD, after))


def test_supervisor_has_the_settings_of_all() -> None:
    """It starts services with them; which folder it looks after it is told otherwise."""
    before, after = ({"COMITY_IDENTITY_X": value, "COMITY_DATA_DIR": value} for value in ("1", "2"))
    found = differences(started_with(SUPERVISOR, RECORD, before), started_with(SUPERVISOR, RECORD, after))
    assert found == ["COMITY_IDENTITY_X changed"]


def test_other_code_is_told_with_both_versions() -> None:
    """An update is a reason to start again, and so is a release that did not write down what it started."""
    now = Started("boot/1", "0.1.0+new", {})
    assert differences(Started("boot/1", "0.1.0+old", {}), now) == ["version 0.1.0+old is now 0.1.0+new"]
    assert differences(None, now) == ["an earlier release started it"]


def test_what_is_kept_is_of_one_process(tmp_path: Path) -> None:
    """Another process under the name was started by somebody who wrote nothing down; a damaged file says nothing."""
    file, started = StartedFile(tmp_path), started_with("identity", RECORD, BEFORE)
    file.put("identity", started)
    assert file.of("identity", RECORD) == started
    assert file.of("identity", ProcessRecord(7, "boot/2")) is None
    assert (tmp_path / "started.json").stat().st_mode & 0o077 == 0
    (tmp_path / "started.json").write_text("{")
    assert file.of("identity", RECORD) is None
    file.put("identity", None)
    assert (tmp_path / "started.json").read_text() == "{}\n"
