"""What commands print: results on standard output, progress and errors on standard error."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from google.protobuf.descriptor import EnumDescriptor
from rich import progress as bars
from rich.console import Console

Progress = Callable[[str], None]

# Columns of what goes into a file or another program, where a narrower table would cut ids and words short.
UNWATCHED_WIDTH = 200


def _width(stream: TextIO) -> int | None:
    """Columns to fill; None: those of the terminal, or what COLUMNS says."""
    return None if stream.isatty() or "COLUMNS" in os.environ else UNWATCHED_WIDTH


console = Console(highlight=False, width=_width(sys.stdout))
errors = Console(stderr=True, highlight=False, width=_width(sys.stderr))


def print_json(value: Any) -> None:
    """Print the value as one JSON object."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def enum_word(enum: EnumDescriptor, number: int) -> str:
    """RANKED for REASON_RANKED; empty where none is set; the number where a newer server knows more."""
    if not number:
        return ""
    found = enum.values_by_number.get(number)
    # Every enum's zero is <PREFIX>_UNSPECIFIED, which tells the prefix of the others.
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(number) if found is None else found.name.removeprefix(prefix)


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """Told what is being done, shows it: a line that changes on a terminal, lines elsewhere, nothing when *quiet*."""
    if quiet:
        yield lambda _: None
    elif errors.is_terminal:
        with errors.status("") as status:
            yield status.update
    else:
        yield errors.print


def progress_bar(*, quiet: bool = False) -> bars.Progress:
    """Bars on standard error that count on a terminal, a line for each step elsewhere, nothing when *quiet*."""
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    )
    if quiet or errors.is_terminal:
        return bars.Progress(*columns, console=errors, transient=True, disable=quiet)
    return _Lines(*columns, console=errors, disable=True)


class _Lines(bars.Progress):
    """Progress where no bar can be drawn: says what is being done whenever that changes."""

    _said = ""

    def add_task(self, description: str, *args: Any, **more: Any) -> bars.TaskID:
        """A new step."""
        self._say(description)
        return super().add_task(description, *args, **more)

    def update(self, task_id: bars.TaskID, *, description: str | None = None, **more: Any) -> None:
        """How far a step is, and perhaps what it does now."""
        if description is not None:
            self._say(description)
        super().update(task_id, description=description, **more)

    def _say(self, description: str) -> None:
        if description != self._said:
            self._said = description
            self.console.print(description, markup=False)
