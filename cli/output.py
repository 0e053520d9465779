"""What commands print: results on standard output, progress and errors on standard error."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from google.protobuf.descriptor import EnumDescriptor
from rich.console import Console

Progress = Callable[[str], None]

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


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
