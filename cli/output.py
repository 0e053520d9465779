"""What commands print: results on standard output, progress and errors on standard error.

Ids, texts of bundles and errors are printed as they are, whatever they hold: the consoles read no markup in them, and
nothing that moves a cursor or hides a line reaches the terminal. Styles come in through `styled` alone, whose template
is a literal of our own. tests/arch/test_printing.py holds it.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich import progress as bars
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

from services.chassis.limits import UNPRINTABLE

Progress = Callable[[str], None]

# Columns of what goes into a file or another program, where a narrower table would cut ids and words short.
UNWATCHED_WIDTH = 200


def _width(stream: TextIO) -> int | None:
    """Columns to fill; None: those of the terminal, or what COLUMNS says."""
    return None if stream.isatty() or "COLUMNS" in os.environ else UNWATCHED_WIDTH


# Where no bar can be drawn: so often it is said how far it is, whether or not that changed.
SAY_EVERY_S = 30.0


def plain(text: str) -> str:
    """The text without what a terminal would obey: its own line breaks and tabs stay."""
    return UNPRINTABLE.sub(lambda found: found[0] if found[0] in "\n\t" else "\N{REPLACEMENT CHARACTER}", text)


def styled(template: str, *values: object) -> Text:
    """The template's markup, with the values in the places of its `{}` as they are: none of them is read as markup.

    Args:
        template: a literal, never put together from values: `styled("[bold]{}[/] in {:.1f} s", name, took_s)`.
        values: numbers keep the format that the template gives them; everything else is its text, in one line.
    """
    shown = (one if isinstance(one, int | float) else escape(" ".join(plain(str(one)).split("\n"))) for one in values)
    return Text.from_markup(template.format(*shown), emoji=False)


class SafeConsole(Console):
    """A console that reads no markup and no emoji codes, and that obeys no control character of what it prints."""

    def __init__(self, **more: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **more)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As of Console; the control segments that rich makes by itself are its own business."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=plain(segment.text))


console = SafeConsole(width=_width(sys.stdout))
errors = SafeConsole(stderr=True, width=_width(sys.stderr))


def write(text: str, *, error: bool = False, end: str = "\n") -> None:
    """Print the text unwrapped, whatever the width."""
    print(plain(text), end=end, file=sys.stderr if error else sys.stdout)


def print_json(value: Any) -> None:
    """Print the value as one JSON object."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # Those that JSON lets through as they are; line breaks are between the fields.
    print(UNPRINTABLE.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text))


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """Told what is being done, shows it on standard error: a line that changes on a terminal, lines elsewhere.

    Args:
        quiet: no line for each step; what takes long is told every half minute all the same.
    """
    if errors.is_terminal:
        with errors.status("") as status:
            yield lambda text: status.update(Text(text))
        return
    said = ""

    def tell(text: str) -> None:
        nonlocal said
        said = text
        if not quiet:
            errors.print(text)

    beat = _Beat(lambda: said)
    try:
        yield tell
    finally:
        beat.stop()


def progress_bar(*, quiet: bool = False, of_bytes: bool = False) -> bars.Progress:
    """Bars on standard error that count on a terminal, lines elsewhere; *quiet* as of `progress`."""
    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.DownloadColumn() if of_bytes else bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    )
    if errors.is_terminal:
        return bars.Progress(*columns, console=errors, transient=True)
    lines = _Lines(*columns, console=errors, disable=True)
    lines.quiet = quiet
    return lines


class _Beat:
    """Prints a text on standard error now and then, until it is stopped."""

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when nothing more is printed."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(SAY_EVERY_S):
            if text := self._text():
                errors.print(text)


class _Lines(bars.Progress):
    """Progress where no bar can be drawn: says what is being done whenever that changes, and how far it is."""

    quiet = False
    _said = ""
    _beat: _Beat | None = None

    def start(self) -> None:
        """Begin to say how far it is."""
        self._beat = _Beat(self._how_far)

    def stop(self) -> None:
        """Say nothing more."""
        if self._beat is not None:
            self._beat.stop()

    def _how_far(self) -> str:
        if not self.tasks:
            return ""
        task = self.tasks[-1]
        return task.description + f": {task.completed:.0f}{f' of {task.total:.0f}' if task.total else ''}"

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
            if not self.quiet:
                self.console.print(description)
