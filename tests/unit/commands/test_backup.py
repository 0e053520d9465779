"""What `comity backup` and `comity restore` refuse, and what they leave alone."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.privacy.files import sizes
from cli.privacy.settling import folders_of
from cli.stack import DataDir, discard, temporary_folder
from cli.stack.processes import ProcessRecord, start_time
from cli.stack.state import State
from services.chassis.events import ORIGIN
from services.consent.domain.journal import ERASED, Entry, Mark, file_name, key_of, lines_of

KEY = key_of(b"k" * 64)
AT = datetime(2026, 11, 2, tzinfo=UTC)
REVOKED = Entry("e1", ORIGIN, "REVOKED", ("a" * 26,), "ads", AT, AT)
GONE = Entry("e2", ORIGIN, ERASED, ("b" * 26,), "", AT, AT, "erasure-1", "b" * 26)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that a user without rights may pass through, as Postgres must."""
    with temporary_folder() as made:
        yield made


@pytest.fixture
def data_dir(folder: Path) -> Path:
    """A stack that was stopped."""
    return stopped(folder / "stack", "first")


def stopped(path: Path, content: str, **state: Any) -> Path:
    made = DataDir(path)
    made.create()
    (made.secrets / "receipt_key").write_text("k" * 64)
    (path / "postgres" / "data").mkdir(parents=True)
    (path / "postgres" / "data" / "PG_VERSION").write_text(content)
    (made.logs / "consent.log").write_text("what happened")
    made.write(State(stack_id=content, **state))
    return path


def content_of(data_dir: Path) -> str:
    state = DataDir(data_dir).read()
    assert state is not None
    return (DataDir(data_dir).postgres(state.stack_id) / "data" / "PG_VERSION").read_text()


def journal_of(data_dir: Path) -> Path:
    place = DataDir(data_dir).journal()
    place.mkdir(exist_ok=True)
    return place / file_name(KEY)


def comity(command: str, *arguments: str, data_dir: Path) -> Any:
    """What it prints with --json; of an error, its reason."""
    result = CliRunner().invoke(app, [command, *arguments, f"--data-dir={data_dir}", "--json"])
    if result.exit_code == 0:
        return json.loads(result.stdout)
    return json.loads(result.stderr.splitlines()[-1])["error"]["reason"]


def test_backup_is_restored_elsewhere_as_a_stack_of_its_own(data_dir: Path, folder: Path) -> None:
    """With its secrets and a copy of the journal, without logs; the first one is as it was."""
    journal_of(data_dir).write_bytes(lines_of(KEY, Mark(), [REVOKED])[0])
    taken = comity("backup", f"--to={folder / 'backup'}", data_dir=data_dir)
    assert taken["journal_entries"] == 1
    assert {path.stat().st_mode & 0o077 for path in (folder / "backup", folder / "backup" / "data.tar")} == {0}
    journal_of(data_dir).write_bytes(lines_of(KEY, Mark(), [REVOKED, REVOKED, GONE])[0])
    told = comity("restore", f"--from={folder / 'backup'}", data_dir=folder / "other")
    assert (told["entries"], told["refusals"], told["erasures"]) == (3, 1, 1)
    assert journal_of(folder / "other").read_bytes() == journal_of(data_dir).read_bytes()
    assert content_of(folder / "other") == content_of(data_dir) == "first"
    assert DataDir(folder / "other").read() != DataDir(data_dir).read()
    assert DataDir(folder / "other").journal_key == KEY
    assert not (folder / "other" / "logs").exists()


def test_restore_replaces_a_stack_only_when_it_is_told_to(data_dir: Path, folder: Path) -> None:
    """And never anything else; a failed restore leaves nothing behind."""
    comity("backup", f"--to={folder / 'backup'}", data_dir=data_dir)
    second = stopped(folder / "second", "second")
    files, notes = folder / "files", folder / "files" / "notes.txt"
    files.mkdir()
    notes.write_text("mine")
    command = ("restore", f"--from={folder / 'backup'}", "--yes")
    assert comity(*command, data_dir=second) == "DATA_DIR_EXISTS"
    assert comity(*command, "--replace", data_dir=files) == "NOT_A_STACK"
    assert (content_of(second), notes.read_text()) == ("second", "mine")
    comity(*command, "--replace", data_dir=second)
    assert content_of(second) == "first"
    assert not list(folder.glob("*.restoring"))


def test_running_stack_is_neither_copied_nor_replaced(data_dir: Path, folder: Path) -> None:
    """Half of a moment would be in the copy; the remedy is named."""
    comity("backup", f"--to={folder / 'backup'}", data_dir=data_dir)
    init = ProcessRecord(1, start_time(1) or "")
    up = stopped(folder / "up", "up", processes={"consent": init})
    assert comity("backup", f"--to={folder / 'more'}", data_dir=up) == "STACK_IS_UP"
    assert comity("restore", f"--from={folder / 'backup'}", "--yes", "--replace", data_dir=up) == "STACK_IS_UP"
    assert not (folder / "more").exists()


def test_data_on_external_servers_is_not_said_to_be_copied(folder: Path) -> None:
    """Its record is elsewhere: a copy of the folder would be a backup of nothing."""
    theirs = stopped(folder / "theirs", "theirs", external=["postgres"])
    assert comity("backup", f"--to={folder / 'backup'}", data_dir=theirs) == "SERVERS_ARE_EXTERNAL"


def test_backup_that_is_not_what_was_written_is_not_restored(data_dir: Path, folder: Path) -> None:
    """Cut short, changed, or no backup at all; and no backup is written over another."""
    backup = folder / "backup"
    comity("backup", f"--to={backup}", data_dir=data_dir)
    assert comity("backup", f"--to={backup}", data_dir=data_dir) == "BACKUP_EXISTS"
    with (backup / "data.tar").open("ab") as archive:
        archive.write(b"more")
    assert comity("restore", f"--from={backup}", "--yes", data_dir=folder / "other") == "BACKUP_DAMAGED"
    (backup / "manifest.json").unlink()
    assert comity("restore", f"--from={backup}", "--yes", data_dir=folder / "other") == "NOT_A_BACKUP"
    assert not (folder / "other").exists()


def test_restore_asks_where_the_journal_is_missing_or_broken(data_dir: Path, folder: Path) -> None:
    """In one line; who goes on with a broken one keeps what is valid of it, and the rest is set aside."""
    backup, target = folder / "backup", folder / "other"
    comity("backup", f"--to={backup}", data_dir=data_dir)
    assert comity("restore", f"--from={backup}", data_dir=target) == "JOURNAL_MISSING"
    journal_of(data_dir).touch()
    assert comity("restore", f"--from={backup}", data_dir=folder / "nobody-refused")["entries"] == 0
    journal_of(data_dir).unlink()
    result = CliRunner().invoke(app, ["restore", f"--from={backup}", f"--data-dir={target}"])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "there is no journal: whoever was erased or took consent back" in result.stderr
    whole, end = lines_of(KEY, Mark(), [REVOKED, GONE])
    first = lines_of(KEY, Mark(), [REVOKED])[0]
    broken = first + whole[len(first) :].replace(b"ERASED", b"DENIED")
    journal_of(target).write_bytes(broken)
    assert comity("restore", f"--from={backup}", data_dir=target) == "JOURNAL_BROKEN"
    told = comity("restore", f"--from={backup}", "--yes", data_dir=target)
    assert (told["journal_broken"], told["entries"], told["refusals"], told["erasures"]) == (True, 1, 1, 0)
    assert journal_of(target).read_bytes() == first
    assert journal_of(target).with_suffix(".broken").read_bytes() == broken
    assert end.number == 2


def test_journal_is_scanned_and_discarded_with_the_stack(data_dir: Path) -> None:
    """Though it lies beside the folder; one of another stack in the same place stays."""
    other = journal_of(data_dir).with_name("consent-0000.journal")
    journal_of(data_dir).write_bytes(lines_of(KEY, Mark(), [REVOKED])[0])
    other.write_text("another's")
    assert journal_of(data_dir) in sizes(folders_of(data_dir))
    discard(data_dir)
    assert list(other.parent.iterdir()) == [other]


def test_journal_is_found_where_it_is_said_to_be(data_dir: Path, folder: Path) -> None:
    """Named with --journal, as on a machine where only the backup and a copy of the journal are."""
    comity("backup", f"--to={folder / 'backup'}", data_dir=data_dir)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / file_name(KEY)).write_bytes(lines_of(KEY, Mark(), [GONE])[0])
    told = comity("restore", f"--from={folder / 'backup'}", f"--journal={elsewhere}", data_dir=folder / "other")
    assert (told["refusals"], told["erasures"]) == (0, 1)
    assert journal_of(folder / "other").exists()
