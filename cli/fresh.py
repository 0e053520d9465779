"""Folders for stacks that begin anew: what an earlier run left there is stopped and removed, and nothing else is."""

import os
from pathlib import Path

from cli.stack import Stack, discard
from cli.stack.external import VARIABLES
from services.chassis.errors import Kind, ServiceError


async def make_room(folder: Path) -> None:
    """Returns when the folder holds no stack any more; what still ran of an earlier one is stopped.

    Raises:
        ServiceError: FAILED_PRECONDITION when the folder holds something else, or another run is using it.
    """
    if holds_stack(folder):
        await Stack(folder).stop()
        discard(folder)


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
