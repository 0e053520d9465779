"""`comity check` and `comity apply`: a site bundle, offline and onto the running services."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.table import Table

from cli import offered
from cli.connections import NO_ADDRESSES, Address, Services, resolve_addresses
from cli.failures import run
from cli.options import DEFAULT_DATA_DIR, AsJson, DataDir
from cli.output import console, errors, print_json, progress, styled

NAMED_MAX = 20

if TYPE_CHECKING:
    from cli.bundle import Applied, Bundle, Problem

Folder: TypeAlias = Annotated[Path, typer.Argument(metavar="DIR", help="Folder that holds site.yaml and the rest.")]
Feed: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--items",
        metavar="FEED",
        exists=True,
        dir_okay=False,
        help="Items as JSON lines, beside or without items.yaml.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command()(check)
    app.command()(apply)


def check(
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Folder that holds site.yaml.")] = None,
    items: Feed = None,
    connect: Annotated[
        bool, typer.Option("--connect", help="Try the servers as the services will; without DIR nothing else.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Check a site bundle without any service: every problem with its file, its line and what to do about it.

    With --connect, also log in to Postgres, NATS and Valkey (those that COMITY_POSTGRES_URL, COMITY_NATS_URL and
    COMITY_REDIS_URL name, or the stack's own) and see that they allow what the services do there.
    """
    if connect:
        _check_connections(data_dir, as_json=as_json, alone=folder is None)
    if folder is None:
        if connect:
            return
        raise typer.BadParameter("name the folder of a site bundle, or give --connect")
    from cli.bundle import check_bundle

    bundle, problems = check_bundle(folder, feed=items)
    _show_problems(problems, as_json=as_json)
    if as_json:
        found = [problem.as_json() for problem in problems]
        print_json({"ok": not problems, "problems": found, "allowed": _allowed(bundle)})
    elif not problems:
        console.print(styled("[green]ok[/]: {}", _summary(bundle)))
        _show_allowed(bundle)
    if problems:
        raise typer.Exit(1)


def _check_connections(data_dir: Path, *, as_json: bool, alone: bool) -> None:
    """Try the servers and tell; with --json only where nothing else is told, or something is wrong."""
    from cli.stack.connecting import try_connections

    found = run(try_connections(data_dir), as_json=as_json)
    fails = any(found.values())
    if as_json and (alone or fails):
        print_json({"ok": not fails, "connections": found})
    if not as_json:
        for server, problems in found.items():
            for problem in problems:
                errors.print(styled("[red]{}[/]: {}", server, problem), soft_wrap=True)
            if not problems:
                console.print(styled("[green]ok[/]: {}", server), soft_wrap=True)
        if not found:
            console.print(
                styled("no server to try: {} has none that is known here, and no variable names one", str(data_dir))
            )
    if fails:
        raise typer.Exit(1)


def apply(
    folder: Folder,
    items: Feed = None,
    retire_missing: Annotated[
        bool, typer.Option("--retire-missing", help="Retire what the catalog has and the bundle has not.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Also where models that rank now stop fitting.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Check a site bundle, have every service validate it, then publish it; the site comes last and activates it.

    Nothing is published when any service refuses, or when a model that ranks now would stop fitting. What is as it was
    before keeps its version. Items that are no longer in the bundle stay in the catalog and are shown, which is told;
    --retire-missing retires them.
    """
    from cli.bundle import check_bundle

    bundle, problems = check_bundle(folder, feed=items)
    if problems:
        _show_problems(problems, as_json=as_json)
        if as_json:
            print_json({"ok": False, "problems": [problem.as_json() for problem in problems]})
        raise typer.Exit(1)
    applying = _apply(bundle, data_dir, address, retire_missing=retire_missing, force=force, quiet=as_json)
    applied = run(applying, as_json=as_json)
    if as_json:
        print_json(
            {
                "ok": True,
                "versions": dict(applied.versions),
                "changed": dict(applied.changed),
                "missing": None if applied.missing is None else list(applied.missing),
                "retired": list(applied.retired),
                "offers": offered.as_json(applied.offers),
                "stopped_fitting": list(applied.stopped_fitting),
                "allowed": _allowed(bundle),
            }
        )
    else:
        _show_applied(applied)
        _show_allowed(bundle)


async def _apply(
    bundle: "Bundle", data_dir: Path, address: Sequence[str], *, retire_missing: bool, force: bool, quiet: bool
) -> "Applied":
    from cli.bundle import apply_bundle

    with progress(quiet=quiet) as tell:
        async with Services(resolve_addresses(data_dir, address)) as services:
            return await apply_bundle(bundle, services, retire_missing=retire_missing, force=force, progress=tell)


def _show_problems(problems: "Sequence[Problem]", *, as_json: bool) -> None:
    if as_json or not problems:
        return
    for problem in problems:
        errors.print(str(problem), soft_wrap=True)
    errors.print(styled("[red]{} problem{}[/]", len(problems), "s" * (len(problems) != 1)))


def _allowed(bundle: "Bundle") -> list[dict[str, str]]:
    """Names of the never-list that the site uses all the same: nobody is left to find them by chance."""
    exceptions = bundle.never.message.allow
    return [{"name": one.name, "approver": one.approver, "reason": one.reason} for one in exceptions]


def _show_allowed(bundle: "Bundle") -> None:
    for one in _allowed(bundle):
        text = f"{one['name']} is used though the never-list refuses it: {one['reason']} ({one['approver']})"
        console.print(styled("[yellow]allowed[/]: {}", text), soft_wrap=True)


def _summary(bundle: "Bundle") -> str:
    counts = {
        "purposes": bundle.purposes,
        "events": bundle.events,
        "features": bundle.features,
        "placements": bundle.placements,
        "policies": bundle.policies,
        "items": bundle.items,
    }
    return f"{bundle.head.message.name}: " + ", ".join(f"{len(things)} {name}" for name, things in counts.items())


def _show_applied(applied: "Applied") -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("", "version", ""):
        table.add_column(column)
    words = {True: styled("[green]changed[/]"), False: styled("[dim]unchanged[/]"), None: styled("")}
    for part, version in applied.versions.items():
        table.add_row(part, version, words[applied.changed[part]])
    console.print(table)
    for name in applied.stopped_fitting:
        console.print(styled("[yellow]stopped fitting[/]: {} reads other features; comity train {}", name, name))
    if applied.missing is None:
        text = "it is not known which the catalog has and the bundle has not: decision is of an earlier release"
        console.print(styled("[yellow]items[/]: {}", text), soft_wrap=True)
    if applied.missing:
        text = f"{_count(applied.missing)} in the catalog, not in the bundle, and shown all the same"
        console.print(styled("[yellow]items[/]: {}; --retire-missing retires them", text), soft_wrap=True)
    if applied.retired:
        console.print(styled("[green]retired[/]: {}", _count(applied.retired)), soft_wrap=True)
    for line in offered.cuts(applied.offers):
        console.print(styled("[yellow]cut[/]: {}", line), soft_wrap=True)


def _count(item_ids: Sequence[str]) -> str:
    """How many, and which, as far as anybody reads on."""
    more = "" if len(item_ids) <= NAMED_MAX else ", …"
    return f"{len(item_ids):,} ({', '.join(item_ids[:NAMED_MAX])}{more})"
