"""Folders that begin anew: a stack is removed, and anything else is left alone."""

from pathlib import Path

import pytest

from cli.fresh import holds_stack, make_room
from cli.stack.state import DataDir, State
from services.chassis.errors import ServiceError


async def test_an_earlier_stack_is_removed(tmp_path: Path) -> None:
    """What an earlier run left is gone."""
    folder = DataDir(tmp_path / "demo")
    folder.create()
    folder.write(State(stack_id="gone"))
    (folder.logs / "decision.log").write_text("old")
    await make_room(folder.path)
    assert not folder.path.exists()


async def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path: Path) -> None:
    """A mistyped --data-dir must not cost anybody their files."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ServiceError, match="no stack"):
        await make_room(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_folder_that_is_empty_or_not_there_is_free(tmp_path: Path) -> None:
    """There is nothing to remove."""
    assert not holds_stack(tmp_path)
    assert not holds_stack(tmp_path / "not-there")


async def test_a_stack_that_another_run_is_using_is_left_alone(tmp_path: Path) -> None:
    """Two runs in one folder: the second is refused, and the first goes on."""
    folder = DataDir(tmp_path / "demo")
    folder.create()
    folder.write(State(stack_id="busy"))
    with folder.exclusive(), pytest.raises(ServiceError) as caught:
        await make_room(folder.path)
    assert caught.value.reason == "DATA_DIR_IN_USE"
    assert (folder.path / "state.json").exists()
