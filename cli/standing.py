"""Which folder a command means that names none: the stack that lies here, else the one that this user brought up last.

`--data-dir` goes before COMITY_DATA_DIR, that before `./.comity` where a stack is in it, that before what is
remembered, and where nothing is, `./.comity` is where `comity up` begins one. So a second stack has to be named.
"""

import os
from contextlib import suppress
from pathlib import Path

from cli.fresh import MARK

HERE = Path(".comity")


def standing_folder() -> Path:
    """The folder, absolute."""
    here, last = HERE.absolute(), _remembered()
    return last if last is not None and not _holds_stack(here) else here


def remember(folder: Path) -> None:
    """From now on this user means the folder where they name none and are not beside another stack.

    Not that of a demo, which is emptied at its next start; and nothing where this user has nowhere to keep it.
    """
    file = _file()
    if file is None or (folder / MARK).exists():
        return
    with suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = file.with_name(f".{file.name}.{os.getpid()}")
        fresh.write_text(f"{folder.absolute()}\n", errors="surrogateescape")
        fresh.replace(file)


def _remembered() -> Path | None:
    """The folder that was brought up last; None where it holds no stack any more."""
    file = _file()
    try:
        folder = Path(file.read_text(errors="surrogateescape").removesuffix("\n")) if file is not None else None
    except OSError:
        return None
    return folder if folder is not None and folder.is_absolute() and _holds_stack(folder) else None


def _file() -> Path | None:
    """Where it is kept (XDG base directories: state); None for a user without a home."""
    named = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(named):
        return Path(named) / "comity" / "data_dir"
    try:
        return Path.home() / ".local" / "state" / "comity" / "data_dir"
    except RuntimeError:
        return None


def _holds_stack(folder: Path) -> bool:
    return os.path.exists(folder / "state.json")
