"""`comity up`, `down`, `status` and `serve`: the stack on this machine."""

import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cli.failures import run, until_terminated
from cli.options import DEFAULT_DATA_DIR, AsJson, DataDir, source_of
from cli.output import console, errors, print_json, progress, styled
from cli.settings import require_known_of_services
from cli.stack import SERVICES, USUAL_PORTS, Part, Stack, StackStatus, addresses, look
from cli.stack.figures import Figures, measure
from cli.stack.launch import become
from cli.standing import remember
from services.chassis.errors import ServiceError
from services.chassis.logs import setup_logs

COLORS = {"up": "green", "external": "green", "down": "dim", "crashed": "red", "silent": "red", "unreachable": "red"}
COLORS |= {"refused": "red"}


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    for command in (up, down, status, serve):
        app.command()(command)


def up(
    context: typer.Context,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    move_servers: Annotated[
        bool, typer.Option("--move-servers", help="Use the servers named now, though the stack was on others.")
    ] = False,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, and stop everything at Ctrl-C or SIGTERM; for systemd and such.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start the servers and the five services, or what of them does not run; they outlive this command.

    So does a supervisor, which starts again what ends unasked: at once, and after longer and longer if it ends again.

    Postgres, NATS and Valkey come from wheels and listen on this machine only. A server that runs elsewhere is used
    instead when COMITY_POSTGRES_URL, COMITY_NATS_URL or COMITY_REDIS_URL names it. A stack stays on the servers that
    it began on: where these variables name others, or none any more, it is not started.

    What runs with other settings than those of this shell, or with other code than is installed, is started again, one
    after the other; not beside a supervisor in the foreground, which has settings of its own. Where no folder is named,
    later commands mean this one.
    """
    started_s = time.monotonic()
    require_known_of_services()
    telling = ExitStack()

    async def tell_up() -> None:
        found, figures = await look(data_dir), await measure(data_dir, now_s=time.time())
        telling.close()
        if source_of(context, "data_dir") != "ENVIRONMENT":
            remember(data_dir)
        notes = [f"{name} was started again: {why}" for name, why in stack.renewed.items()] + stack.notes
        show(found, as_json=as_json, figures=figures, notes=notes)
        if not as_json:
            for line in moved(found):
                errors.print(line)
            errors.print(f"up in {time.monotonic() - started_s:.1f} s; stop it with `comity down`")
        sys.stdout.flush()

    with telling:
        tell = telling.enter_context(progress(quiet=as_json))
        stack = Stack(data_dir, tied=False, watched=not foreground, move_servers=move_servers, progress=tell)
        work = _stay(stack, tell_up) if foreground else stack.start()
        run(until_terminated(work), as_json=as_json)
    if not foreground:
        run(tell_up(), as_json=as_json)


async def _stay(stack: Stack, tell_up: Callable[[], Awaitable[None]]) -> None:
    """Start the stack and be its supervisor, from the first moment to the last."""
    from cli.stack.watch import Watch

    setup_logs("supervisor", "info")
    stack.require_unsupervised()  # or what is outdated would be started again, and then this is refused
    await stack.start()
    stack.watch_here()
    try:
        await tell_up()
        await Watch(stack).run()
    except BaseException:
        await stack.stop()
        raise


def down(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Stop the services and the servers that `comity up` started; the data stays."""
    before = run(look(data_dir), as_json=as_json)
    running = [part.name for part in before.parts if part.pid]
    if (data_dir / "state.json").exists():
        run(Stack(data_dir, tied=False).stop(), as_json=as_json)
    if as_json:
        print_json({"data_dir": str(before.data_dir), "stopped": running})
    else:
        told = f"stopped {', '.join(running)} of" if running else "nothing ran in"
        console.print(f"{told} {before.data_dir}", soft_wrap=True)


def status(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Show what really runs and answers, what is wrong, and what it takes; exit code 0 only when all of it answers.

    Growth is told since the last look that is a minute old or older, the first of which `comity up` takes.
    """
    found = run(look(data_dir), as_json=as_json)
    decides = any(part.name == "decision" and part.works for part in found.parts)
    notes = run(_cuts(data_dir), as_json=as_json) if decides else ()
    show(found, as_json=as_json, figures=run(measure(data_dir, now_s=time.time()), as_json=as_json), notes=notes)
    if found.summary != "up":
        raise typer.Exit(1)


def serve(
    service: Annotated[str, typer.Argument(help=f"One of {', '.join(SERVICES)}.", metavar="SERVICE")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Run one service in the foreground, in place of the one in the background.

    The servers are started if they do not run. Ctrl-C ends the service; then the supervisor that `comity up` left,
    or else the next `comity up`, puts the one in the background back.
    """
    if service not in SERVICES:
        raise typer.BadParameter(f"{service!r} is not a service; choose one of {', '.join(SERVICES)}")
    require_known_of_services()
    with progress() as tell:
        command = run(Stack(data_dir, services=(), tied=False, progress=tell).take_over(service))
    os.chdir(command.cwd)
    command.hand_over()
    if command.uid is not None:
        become(command.uid, reads_all=command.reads_all)
    # The process stays, so the pid that was written down is the service's.
    os.execve(command.argv[0], command.argv, dict(command.env))


async def _cuts(data_dir: Path) -> list[str]:
    """Which eligible items are not considered; nothing where the stack went down since it was looked at."""
    from cli.offered import cuts, offers_of

    with suppress(ServiceError):
        return cuts(await offers_of(addresses(data_dir)))
    return []


def show(found: StackStatus, *, as_json: bool, figures: Figures | None = None, notes: Sequence[str] = ()) -> None:
    """Print the parts, what they are together, the alarms that stand, and what it takes of the machine.

    Args:
        notes: what else is to be known.
    """
    if as_json:
        print_json({**_as_object(found), "figures": figures_as_object(figures), "notes": [*found.notes, *notes]})
        return
    table = Table(box=None, pad_edge=False)
    restarted = any(part.restarts for part in found.parts)
    for column in ("", "state", "address", "pid", "version", *(["started again"] if restarted else [])):
        table.add_column(column)
    for part in found.parts:
        state = styled("[{}]{}[/]", COLORS[part.state], part.state)
        table.add_row(part.name, state, part.address, str(part.pid or ""), part.version, *_restarts(part))
    console.print(table)
    alarms = [
        *(("stack", alarm) for alarm in found.alarms),
        *((part.name, one) for part in found.parts for one in part.alarms),
    ]
    wrong = f", and {len(alarms)} alarm{'s' * (len(alarms) > 1)} (below)" if alarms else ""
    console.print(f"{found.summary}{wrong}: {found.data_dir}", soft_wrap=True)
    if found.journal is not None:
        console.print(f"journal: {found.journal.entries} refusals and erasures, {found.journal.lag_s:.1f} s behind")
    for line in figures_in_words(figures):
        console.print(line, soft_wrap=True)
    for where, alarm in alarms:
        since = f" since {alarm.since}" if alarm.since else ""
        told = (where, alarm.name, since, alarm.sentence, alarm.remedy)
        console.print(styled("[red]{}: {}[/]{}: {} {}", *told), soft_wrap=True)
    for note in (*found.notes, *notes):
        console.print(note, soft_wrap=True)


def figures_in_words(figures: Figures | None) -> list[str]:
    """What the stack takes, a line each: memory, disk, a decision, growth."""
    if figures is None:
        return []
    lines = [f"memory: {_sum_of(figures.memory_bytes)}", f"disk: {_sum_of(figures.disk_bytes)}"]
    if figures.decision_bytes is not None:
        each = _size(figures.decision_bytes)
        lines.append(f"a decision takes {each} of decision's log, which holds {figures.decisions_count:,}")
    if figures.growth_bytes_per_minute is not None:
        lines.append(f"growth: {_size(figures.growth_bytes_per_minute)} a minute on disk since {figures.since}")
    return lines


def figures_as_object(figures: Figures | None) -> dict[str, Any] | None:
    """The same for programs, in bytes."""
    return None if figures is None else {**asdict(figures), "decision_bytes": figures.decision_bytes}


def _sum_of(sizes: Mapping[str, int]) -> str:
    each = ", ".join(f"{name} {_size(size)}" for name, size in sizes.items() if size)
    return _size(sum(sizes.values())) + (f" ({each})" if each else "")


def _size(count: float) -> str:
    """Bytes as people read them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count:,.0f} bytes"


def _restarts(part: Part) -> list[str]:
    """What the supervisor did, as the table's last column shows it."""
    if (done := part.restarts) is None:
        return []
    when = f"at {done.last}" if done.count == 1 else f"{done.count} times since {done.first}, last at {done.last}"
    return [when]


def moved(found: StackStatus) -> list[str]:
    """What a backend that calls the usual ports must know: which service is elsewhere."""
    return [
        f"{part.name} is at {part.address} and not at its usual port {usual}, which was taken when it got this one"
        for part in found.parts
        if (usual := USUAL_PORTS.get(part.name)) and part.works and not part.address.endswith(f":{usual}")
    ]


def _as_object(found: StackStatus) -> dict[str, Any]:
    return {
        "data_dir": str(found.data_dir),
        "postgres_dir": None if found.postgres_dir is None else str(found.postgres_dir),
        "installed": found.installed,
        "summary": found.summary,
        "parts": [asdict(part) for part in found.parts],
        "alarms": [asdict(alarm) for alarm in found.alarms],
        "journal": None if found.journal is None else asdict(found.journal),
    }
