"""Folders that begin anew: what an earlier run left is removed, and anything else is left alone."""

from pathlib import Path

import pytest

from cli.fresh import MARK, make_room
from cli.stack.state import DataDir, State
from services.chassis.errors import ServiceError


def stack_in(path: Path) -> DataDir:
    """A stack that was stopped."""
    folder = DataDir(path)
    folder.create()
    folder.write(State(stack_id="stopped"))
    (folder.logs / "decision.log").write_text("old")
    return folder


async def test_an_earlier_run_is_removed(tmp_path: Path) -> None:
    """What it left is gone, also where it had hardly begun, and the next finds its mark."""
    await make_room(tmp_path / "demo")
    await make_room(tmp_path / "demo")
    stack_in(tmp_path / "demo")
    await make_room(tmp_path / "demo")
    assert [file.name for file in (tmp_path / "demo").iterdir()] == [MARK]


async def test_a_stack_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """The data of `comity up` are nobody's to empty for a demo."""
    folder = stack_in(tmp_path / "theirs")
    with pytest.raises(ServiceError, match="name another folder"):
        await make_room(folder.path)
    assert (folder.logs / "decision.log").read_text() == "old"


async def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path: Path) -> None:
    """A mistyped --data-dir must not cost anybody their files."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ServiceError, match="name another folder"):
        await make_room(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


async def test_a_run_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    """Two runs in one folder: the second is refused, and the first goes on."""
    await make_room(tmp_path / "demo")
    folder = stack_in(tmp_path / "demo")
    with folder.exclusive(), pytest.raises(ServiceError) as caught:
        await make_room(folder.path)
    assert caught.value.reason == "DATA_DIR_IN_USE"
    assert (folder.path / "state.json").exists()


async def test_a_run_that_is_resumed_finds_what_it_left(tmp_path: Path) -> None:
    """Nothing is removed, and where there was no run there is nothing to go on from."""
    await make_room(tmp_path / "run")
    folder = stack_in(tmp_path / "run")
    await make_room(folder.path, resume=True)
    assert (folder.logs / "decision.log").read_text() == "old"
    with pytest.raises(ServiceError, match="without --resume"):
        await make_room(tmp_path / "other", resume=True)
