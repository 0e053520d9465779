"""Folders for stacks that begin anew: what an earlier run left there is stopped and removed, and nothing else is."""

import os
from pathlib import Path

from cli.stack import Stack, discard
from cli.stack.external import VARIABLES
from services.chassis.errors import Kind, ServiceError

# Whose data it is: `comity up` never leaves this file, so the stack of a team is never taken for that of a demo.
MARK = "emptied-at-every-start"


async def make_room(folder: Path, *, resume: bool = False) -> None:
    """Returns when the folder is there and holds no stack; what still ran of an earlier run is stopped.

    Args:
        resume: keep what an earlier run left there, to go on from it.

    Raises:
        ServiceError: FAILED_PRECONDITION when the folder holds something else, or another run is using it, or there is
            nothing to go on from.
    """
    if holds_earlier_run(folder):
        await Stack(folder).stop()
        if not resume:
            discard(folder)
    elif resume:
        raise ServiceError(
            Kind.FAILED_PRECONDITION, "NOTHING_TO_RESUME", f"no earlier run is in {folder}; begin without --resume"
        )
    _mark(folder)


def _mark(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def embedded_only() -> None:
    """From now on this process starts its own servers: an external one would hold what earlier runs left there."""
    for variable in VARIABLES.values():
        os.environ.pop(variable, None)


def holds_earlier_run(folder: Path) -> bool:
    """Whether there is something in the folder that make_room prepared.

    Raises:
        ServiceError: FAILED_PRECONDITION when there is something else.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return False
    if not (folder / MARK).exists():
        raise ServiceError(
            Kind.FAILED_PRECONDITION,
            "FOLDER_IN_USE",
            f"{folder} holds something that no earlier run has left there; name another folder with --data-dir",
        )
    return True
