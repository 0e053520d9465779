"""`comity backup` and `restore`: a stack's data, and what was refused since it was copied."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from cli.failures import fail
from cli.options import DEFAULT_DATA_DIR, AsJson, DataDir
from cli.output import console, errors, print_json
from cli.stack import backups
from cli.stack.backups import Known, Manifest
from services.chassis.errors import Kind, ServiceError


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    for command in (backup, restore):
        app.command()(command)


def backup(
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="New folder for the backup; it will hold the keys.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Copy everything that a stopped stack keeps: databases, streams, secrets. Stop it with `comity down` first."""
    try:
        total = backups.size_of(iter(backups.contents(data_dir).values()))
        with _bar(quiet=as_json) as bar:
            task = bar.add_task("copying", total=total)
            manifest = backups.back_up(data_dir, to, lambda count: bar.advance(task, count))
    except ServiceError as error:
        fail(error, as_json=as_json)
    if as_json:
        print_json({"backup": str(to), **asdict(manifest)})
        return
    console.print(f"{manifest.size_bytes:,} bytes in {to}: keep it as safe as the stack, it holds the keys")
    console.print(f"what is refused from now on is in {manifest.journal}, which is not part of the backup")


def restore(
    backup: Annotated[Path, typer.Option("--from", metavar="DIR", help="Folder of the backup.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    replace: Annotated[bool, typer.Option("--replace", help="Remove the stack that is in the data directory.")] = False,
    journal: Annotated[
        Path | None, typer.Option("--journal", metavar="DIR", help="Where consent's journal lies, if not where it was.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Go on without a journal, or with a broken one.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup in place as a stopped stack. What was refused or erased since is put back when consent starts.

    That is known from consent's journal, which lies outside of the backup. Where there is none this command asks;
    scripts say --yes. Who agreed again after the backup is refused until they are asked again.
    """
    try:
        backups.require_free(data_dir, replace=replace)
        manifest = backups.read_manifest(backup)
        with _bar(quiet=as_json) as bar:
            task = bar.add_task("checking", total=manifest.size_bytes)
            with backups.unpacked(backup, manifest, data_dir, lambda count: bar.advance(task, count)) as fresh:
                bar.stop()
                known = backups.look_into_journal(
                    fresh.journal_key, _places(data_dir, manifest, journal), manifest.journal_entries
                )
                _agree(known, yes=yes, as_json=as_json)
                place = backups.put_in_place(fresh, data_dir, known)
    except ServiceError as error:
        fail(error, as_json=as_json)
    _show(manifest, known, data_dir, place, as_json=as_json)


def _places(data_dir: Path, manifest: Manifest, named: Path | None) -> list[Path]:
    """Where the journal may be: as named, else beside the data directory, else where it was."""
    from cli.stack import DataDir as Folder

    if named is not None:
        return [named]
    return [Folder(data_dir).journal(), *([Path(manifest.journal).parent] if manifest.journal else [])]


def _agree(known: Known, *, yes: bool, as_json: bool) -> None:
    """Returns when nothing is in doubt, or somebody said to go on.

    Raises:
        ServiceError: FAILED_PRECONDITION (JOURNAL_MISSING, JOURNAL_BROKEN).
    """
    if not known.doubt:
        return
    if yes:
        errors.print(known.doubt)
        return
    if not as_json and sys.stdin.isatty() and typer.confirm(f"{known.doubt}. Restore all the same?", err=True):
        return
    reason = "JOURNAL_BROKEN" if known.broken else "JOURNAL_MISSING"
    raise ServiceError(
        Kind.FAILED_PRECONDITION, reason, f"{known.doubt}; name its folder with --journal, or go on with --yes"
    )


def _show(manifest: Manifest, known: Known, data_dir: Path, place: Path, *, as_json: bool) -> None:
    if as_json:
        told: dict[str, Any] = {"journal": str(place) if known.journal else "", "journal_broken": known.broken}
        told |= {name: getattr(known, name) for name in ("entries", "until", "refusals", "erasures")}
        print_json({"data_dir": str(data_dir), "taken_at": manifest.taken_at, **told})
        return
    console.print(f"restored {data_dir} as it was on {manifest.taken_at}; start it with `comity up`")
    if known.journal is not None:
        until = f"line {known.entries}, {known.until}" if known.entries else "its beginning: it is empty"
        console.print(f"the journal is known up to {until}")
        console.print(
            f"before consent serves, {known.refusals} refusals and {known.erasures} erasures since the backup are put "
            "back; who agreed again meanwhile is refused until they are asked again"
        )


def _bar(*, quiet: bool) -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=errors, transient=True, disable=quiet or not errors.is_terminal)
