"""Options that many commands share, so that they are spelled and explained the same everywhere."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

DataDir: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--data-dir", envvar="COMITY_DATA_DIR", help="Folder of the stack: its data, logs, traces and secrets."
    ),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text for people.")]

DEFAULT_DATA_DIR = Path(".comity")
