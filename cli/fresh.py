"""Folders for stacks that begin anew: what an earlier run left there is stopped and removed, and nothing else is."""

import os
import shutil
from pathlib import Path

from cli.stack import Stack
from cli.stack.external import VARIABLES
from cli.stack.state import DataDir
from services.chassis.errors import Kind, ServiceError


async def make_room(folder: Path) -> None:
    """Returns when the folder holds no stack any more; what still ran of an earlier one is stopped.

    Raises:
        ServiceError: FAILED_PRECONDITION when the folder holds something else, or another run is using it.
    """
    if holds_stack(folder):
        await Stack(folder).stop()
        remove_stack(folder)


def embedded_only() -> None:
    """From now on this process starts its own servers: an external one would hold what earlier runs left there."""
    for variable in VARIABLES.values():
        os.environ.pop(variable, None)


def holds_stack(folder: Path) -> bool:
    """Whether there is a stack in the folder.

    Raises:
        ServiceError: FAILED_PRECONDITION when there is something else.
    """
    if not folder.exists():
        return False
    if (folder / "state.json").exists():
        return True
    if any(folder.iterdir()):
        raise ServiceError(
            Kind.FAILED_PRECONDITION,
            "FOLDER_IN_USE",
            f"{folder} holds something that is no stack; name another folder with --data-dir",
        )
    return False


def remove_stack(folder: Path) -> None:
    """Remove the folder, and root's Postgres where that lies outside."""
    state = DataDir(folder).read()
    if state is not None:
        shutil.rmtree(DataDir(folder).postgres(state.stack_id).parent, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
