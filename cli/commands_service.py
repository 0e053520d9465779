"""`comity service install`: a stack that the system starts, and starts again."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from cli.failures import fail
from cli.options import DEFAULT_DATA_DIR, AsJson, DataDir
from cli.output import console, print_json, write
from cli.settings import require_known_of_services
from cli.stack.state import DataDir as Folder
from cli.stack.unit import environment_file, unit
from services.chassis.errors import invalid

commands = typer.Typer(help="Let systemd keep the stack of a data directory up.")


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.add_typer(commands, name="service")


@commands.command()
def install(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Of the unit: one for each stack.")] = "comity",
    only_print: Annotated[bool, typer.Option("--print", help="Print the unit, and write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a systemd user unit that runs `comity up --foreground`, and say what to run to start it.

    The COMITY_* variables of this shell are its settings. They are kept in the data directory, in a file that its
    owner alone can read, because addresses hold passwords.
    """
    if not name or not all(letter.isalnum() or letter in "_-" for letter in name):
        fail(invalid("--name", "has other characters than letters, digits, - and _"), as_json=as_json)
    require_known_of_services()
    folder = Folder(data_dir.resolve())
    settings = folder.path / "service.env"
    text = unit(folder.path, settings)
    if only_print:
        if as_json:
            print_json({"text": text})
        else:
            write(text, end="")
        return
    folder.create()
    _write(settings, environment_file(os.environ), mode=0o600)
    file = _units() / f"{name}.service"
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, text, mode=0o644)
    steps = _steps(name, data_dir)
    if as_json:
        print_json({"unit": str(file), "settings": str(settings), "next": steps})
        return
    console.print(f"wrote {file} and {settings}; now run")
    for step in steps:
        console.print(f"  {step}")


def _steps(name: str, data_dir: Path) -> list[str]:
    return [
        f"comity down --data-dir {shlex.quote(str(data_dir))}",  # what runs already has another supervisor
        "systemctl --user daemon-reload",
        f"systemctl --user enable --now {name}",
        'loginctl enable-linger "$USER"',  # without it a user's units end with the last session
    ]


def _units() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "systemd" / "user"


def _write(file: Path, text: str, *, mode: int) -> None:
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.touch(mode=mode)
    fresh.write_text(text)
    fresh.replace(file)
