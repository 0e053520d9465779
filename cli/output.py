"""What commands print: results on standard output, progress and errors on standard error."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

Progress = Callable[[str], None]

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Print the value as one JSON object."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


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
