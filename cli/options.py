"""Options that many commands share, so that they are spelled and explained the same everywhere."""

import getpass
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from comity.common.v1 import types_pb2 as types_pb

DataDir: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--data-dir", envvar="COMITY_DATA_DIR", help="Folder of the stack: its data, logs, traces and secrets."
    ),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text for people.")]

ReadAs: TypeAlias = Annotated[
    str, typer.Option("--as", metavar="NAME", help="Who reads, as it is recorded; you, unless you say so.")
]
Reason: TypeAlias = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why, as it is recorded; names nothing of the person.")
]

DEFAULT_DATA_DIR = Path(".comity")


def access(read_as: str, reason: str) -> types_pb.Access:
    """Who reads personal data, and why; the user of this shell where nobody is named."""
    return types_pb.Access(accessor=read_as or _user(), reason=reason)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container's user has no name.
        return "command_line"
