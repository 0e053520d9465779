"""Which folder a command means: as named, else what lies here, else the stack that was brought up last."""

import os
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.fresh import MARK
from cli.options import DEFAULT_DATA_DIR, DataDir
from cli.standing import remember

shown = typer.Typer()


@shown.command()
def where(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    typer.echo(data_dir, nl=False)


def meant(*arguments: str) -> Path:
    done = CliRunner().invoke(shown, arguments)
    assert done.exit_code == 0, done.output
    return Path(done.stdout)


def stack_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "state.json").touch()
    return folder


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state home"))
    monkeypatch.delenv("COMITY_DATA_DIR", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


def test_without_any_stack_it_is_here(tmp_path: Path) -> None:
    """A first `up` begins a stack where it is said, and the path is absolute."""
    assert meant() == tmp_path / "elsewhere" / ".comity"


def test_stack_that_was_brought_up_last_is_meant_elsewhere(tmp_path: Path) -> None:
    """From another folder the same stack is meant, whatever it is called; no second, empty one is begun there."""
    remember(stack_in(tmp_path / "a shop"))
    assert meant() == tmp_path / "a shop"
    remember(stack_in(tmp_path / "another\nshop"))
    assert meant() == tmp_path / "another\nshop"


def test_what_is_nearer_goes_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option, the variable, the stack that lies here, the one that is remembered: in this order."""
    remember(stack_in(tmp_path / "last"))
    stack_in(tmp_path / "elsewhere" / ".comity")
    assert meant() == tmp_path / "elsewhere" / ".comity"
    monkeypatch.setenv("COMITY_DATA_DIR", "of shell")
    assert meant() == tmp_path / "elsewhere" / "of shell"
    assert meant("--data-dir", "named") == tmp_path / "elsewhere" / "named"


def test_stack_that_is_gone_is_no_longer_meant(tmp_path: Path) -> None:
    """What was removed is not begun anew somewhere else."""
    last = stack_in(tmp_path / "last")
    remember(last)
    (last / "state.json").unlink()
    assert meant() == tmp_path / "elsewhere" / ".comity"


def test_demo_is_never_remembered(tmp_path: Path) -> None:
    """Its folder is emptied at its next start; the stack of before stays the one that is meant."""
    remember(stack_in(tmp_path / "last"))
    demo = stack_in(tmp_path / "demo")
    (demo / MARK).touch()
    remember(demo)
    assert meant() == tmp_path / "last"


def test_user_without_a_place_for_it_remembers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be kept, `up` works all the same."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    remember(stack_in(tmp_path / "last"))
    assert meant() == Path(os.getcwd()) / ".comity"
