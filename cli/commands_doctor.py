"""`comity doctor` and `comity dead-letters`: what is wrong with a stack, and what was put aside in it."""

import os
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from comity.common.v1 import operations_pb2 as pb

from cli.connections import NO_ADDRESSES, Address, Services, resolve_addresses
from cli.failures import run
from cli.options import DEFAULT_DATA_DIR, AsJson, DataDir
from cli.output import console, errors, print_json, styled
from cli.stack import SERVICES, look
from cli.stack.probe import StandingAlarm, is_serving, standing_alarms
from cli.stack.replicas import service_of
from cli.stack.status import Part
from services.chassis.errors import ServiceError, invalid
from services.chassis.rpc_client import call

TIMEOUT_S = 10.0
# A retry may fold a message of many events.
RETRY_TIMEOUT_S = 60.0
PAGE = 500
# The alarm says no more than the letters themselves.
OF_LETTERS = "dead_letters"
NOTHING: list[str] = []

# What is wrong with a part that does not work, and what to do.
WRONG: Mapping[str, tuple[str, str]] = {
    "down": ("it does not run", "start it with `comity up`"),
    "crashed": ("it ended without being asked to", "see the end of its log in {logs}; `comity up` starts it again"),
    "silent": ("it runs and does not answer", "see the end of its log in {logs}; `comity up` starts it anew"),
    "unreachable": ("nothing answers at {address}", "start that server, or correct the variable that names it"),
    "refused": ("it answers and does not let the services work", "correct what its alarm names"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong.

    Args:
        where: a process, or the service whose letter it is.
        what: not_serving, alarm or dead_letter.
        name: of the alarm; SERVICE:ID of a letter; the state of a process.
    """

    where: str
    what: str
    name: str
    problem: str
    remedy: str


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command()(doctor)
    letters = typer.Typer(help="Try again or drop what could not be read; `comity doctor` lists it.")
    letters.command()(retry)
    letters.command()(discard)
    app.add_typer(letters, name="dead-letters")


def doctor(data_dir: DataDir = DEFAULT_DATA_DIR, address: Address = NO_ADDRESSES, as_json: AsJson = False) -> None:
    """List what is wrong with the stack, each with its remedy; exit code 0 only when nothing is."""
    found = run(_examine(data_dir, address), as_json=as_json)
    if as_json:
        print_json({"findings": [asdict(one) for one in found]})
    else:
        for one in found:
            told = (one.where, one.name, one.problem, one.remedy)
            console.print(styled("[red]{}: {}[/] {}\n  [dim]→[/] {}", *told))
        console.print("nothing is wrong" if not found else f"{len(found)} things are wrong")
    if found:
        raise typer.Exit(1)


def retry(
    letter: Annotated[list[str], typer.Argument(metavar="[SERVICE:ID]...", help="As doctor names them.")] = NOTHING,
    everything: Annotated[bool, typer.Option("--all", help="Every dead letter of every service.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Try again what was put aside, oldest first; exit code 0 only when all of it had its effect."""
    left = run(_each(letter, everything, data_dir, address, _retry), as_json=as_json)
    if as_json:
        print_json({"left": [{"letter": name, "reason": reason} for name, reason in left]})
    else:
        for name, reason in left:
            errors.print(styled("[red]{}[/] stays: {}", name, reason))
        console.print("done" if not left else f"{len(left)} stay; mend the cause, or discard them")
    if left:
        raise typer.Exit(1)


def discard(
    letter: Annotated[list[str], typer.Argument(metavar="[SERVICE:ID]...", help="As doctor names them.")] = NOTHING,
    everything: Annotated[bool, typer.Option("--all", help="Every dead letter of every service.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    address: Address = NO_ADDRESSES,
    as_json: AsJson = False,
) -> None:
    """Drop what was put aside, for good: what it was about never has an effect."""
    if not yes:
        typer.confirm("Drop them? What they were about never has an effect", abort=True, err=True)
    run(_each(letter, everything, data_dir, address, _discard), as_json=as_json)
    if as_json:
        print_json({"discarded": True})
    else:
        console.print("discarded")


async def _examine(data_dir: Path, address: Sequence[str]) -> list[Finding]:
    """Everything that is wrong, servers first."""
    of_stack: tuple[StandingAlarm, ...] = ()
    if address or any(f"COMITY_{name.upper()}_ADDRESS" in os.environ for name in SERVICES):
        parts = [await _part_at(name, where) for name, where in resolve_addresses(data_dir, address).items()]
        logs = "its container"
    else:
        found = await look(data_dir)
        parts, logs, of_stack = list(found.parts), str(found.data_dir / "logs"), found.alarms
    findings = [Finding("stack", "alarm", alarm.name, alarm.sentence, alarm.remedy) for alarm in of_stack]
    findings += [
        Finding(part.name, "not_serving", part.state, _filled(WRONG[part.state][0], part, logs), _remedy(part, logs))
        for part in parts
        if not part.works
    ]
    findings += [
        Finding(part.name, "alarm", alarm.name, alarm.sentence, alarm.remedy)
        for part in parts
        for alarm in part.alarms
        if alarm.name != OF_LETTERS
    ]
    # Every process of a service has the same letters: the first that answers is asked.
    answering = {service_of(part.name): part.address for part in reversed(parts) if part.works}
    async with Services({name: answering[name] for name in SERVICES if name in answering}) as services:
        for service in services.addresses:
            findings += await _of_letters(services, service)
    return findings


async def _part_at(name: str, address: str) -> Part:
    serves = await is_serving(address)
    alarms: tuple[StandingAlarm, ...] = await standing_alarms(address) if serves else ()
    return Part(name, "up" if serves else "silent", address, alarms=alarms)


def _remedy(part: Part, logs: str) -> str:
    return _filled(WRONG[part.state][1], part, logs)


def _filled(text: str, part: Part, logs: str) -> str:
    return text.format(address=part.address, logs=logs)


async def _of_letters(services: Services, service: str) -> list[Finding]:
    return [_finding(service, letter) async for letter in _letters(services, service)]


def _finding(service: str, letter: pb.DeadLetter) -> Finding:
    name = f"{service}:{letter.id}"
    what = letter.type.rpartition(".")[2] or letter.channel or "a message"
    which = f" {letter.event_id}" if letter.event_id else ""
    again = f"mend the cause and `comity dead-letters retry {name}`, or " if letter.can_retry else ""
    return Finding(
        service,
        "dead_letter",
        name,
        f"{letter.consumer} put aside {what}{which} of {letter.source}: {letter.detail or letter.reason} "
        f"[{letter.reason}]",
        f"{again}drop it with `comity dead-letters discard {name}`",
    )


async def _letters(services: Services, service: str) -> Any:
    """The service's letters, oldest first; none of one that keeps none, or that is of an older release."""
    stub, after = services.operations(service), 0
    while True:
        try:
            page = await call(stub.ListDeadLetters, pb.ListDeadLettersRequest(after=after, limit=PAGE), TIMEOUT_S)
        except ServiceError as error:
            if error.reason not in ("KEEPS_NO_LETTERS", "RPC_UNIMPLEMENTED"):
                raise
            return
        for letter in page.letters:
            yield letter
        if len(page.letters) < PAGE:
            return
        after = page.letters[-1].id


async def _each(
    named: Sequence[str],
    everything: bool,
    data_dir: Path,
    address: Sequence[str],
    work: Callable[[Any, str, Sequence[int]], Awaitable[list[tuple[str, str]]]],
) -> list[tuple[str, str]]:
    """Do it with the letters that are named, or with all; what is left of them, and why."""
    if bool(named) == everything:
        raise invalid("SERVICE:ID", "name letters as `comity doctor` does, or say --all")
    left: list[tuple[str, str]] = []
    async with Services(resolve_addresses(data_dir, address)) as services:
        if everything:
            wanted = {name: [one.id async for one in _letters(services, name)] for name in services.addresses}
        else:
            wanted = _parsed(named)
        for service, ids in wanted.items():
            for start in range(0, len(ids), PAGE):
                left += await work(services.operations(service), service, ids[start : start + PAGE])
    return left


def _parsed(named: Iterable[str]) -> dict[str, list[int]]:
    ids: dict[str, list[int]] = defaultdict(list)
    for text in named:
        service, _, number = text.partition(":")
        if service not in SERVICES or not number.isdecimal():
            raise invalid("SERVICE:ID", f"is not a letter's name; services are {', '.join(SERVICES)}")
        ids[service].append(int(number))
    return ids


async def _retry(stub: Any, service: str, ids: Sequence[int]) -> list[tuple[str, str]]:
    answer = await call(stub.RetryDeadLetters, pb.RetryDeadLettersRequest(ids=ids), RETRY_TIMEOUT_S)
    return [(f"{service}:{one.id}", f"{one.detail} [{one.reason}]") for one in answer.letters if one.reason]


async def _discard(stub: Any, service: str, ids: Sequence[int]) -> list[tuple[str, str]]:
    await call(stub.DiscardDeadLetters, pb.DiscardDeadLettersRequest(ids=ids), TIMEOUT_S)
    return []
