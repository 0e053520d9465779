"""What of a stack really runs: pids that are ours, ports that answer. Changes nothing."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from cli.stack.disk import disk_alarms
from cli.stack.external import is_known_here, reachable, server_problems, shown
from cli.stack.postgres import accepts
from cli.stack.probe import JournalStatus, StandingAlarm, is_serving, journal_status, standing_alarms
from cli.stack.processes import Process
from cli.stack.provision import SERVICES
from cli.stack.replicas import in_order, service_of
from cli.stack.restarts import Restarts, too_many, wait_s
from cli.stack.server import exchange
from cli.stack.servers import SERVERS
from cli.stack.started import StartedFile
from cli.stack.state import SUPERVISOR, DataDir, State
from cli.stack.users import POSTGRES_UID, is_root, service_uid
from cli.stack.version import code_version
from services.chassis.errors import Kind, ServiceError


@dataclass(frozen=True, slots=True)
class Part:
    """One server or service.

    Args:
        state: up; down (not started, or stopped); crashed (started, and gone); silent (runs, does not answer);
            external or unreachable (run by somebody else); refused (answers, and does not let the services work).
        pid: of a process that runs.
        alarms: those that stand in a service's process, or are about it.
        restarts: how often the supervisor started it again since the stack was started; None: never.
    """

    name: str
    state: str
    address: str
    pid: int | None = None
    version: str = ""
    alarms: tuple[StandingAlarm, ...] = ()
    restarts: "Restarted | None" = None

    @property
    def works(self) -> bool:
        """Whether it answers."""
        return self.state in ("up", "external")


@dataclass(frozen=True, slots=True)
class Restarted:
    """What the supervisor started again: how often, and when first and last (UTC, ISO 8601)."""

    count: int
    first: str
    last: str


@dataclass(frozen=True, slots=True)
class StackStatus:
    """All parts of a stack: servers, services, and the supervisor where `comity up` left one.

    Args:
        journal: None where consent keeps none, or does not answer.
        installed: version of the code that would be started now.
        postgres_dir: where the files of Postgres are, if that is not in the data directory.
        alarms: those about no part alone.
    """

    data_dir: Path
    parts: tuple[Part, ...]
    journal: JournalStatus | None = None
    installed: str = ""
    postgres_dir: Path | None = None
    alarms: tuple[StandingAlarm, ...] = ()

    @property
    def summary(self) -> str:
        """`up`, `down`, or `partly up`."""
        if all(part.works for part in self.parts):
            return "up"
        return "partly up" if any(part.pid for part in self.parts) else "down"

    @property
    def notes(self) -> list[str]:
        """What is to be known of it, and is nothing wrong: a sentence each."""
        notes = [
            f"{part.name} runs {part.version} and {self.installed} is installed; `comity up` starts it again"
            for part in self.parts
            if part.pid and part.version and part.name not in SERVERS and part.version != self.installed
        ]
        if is_root() and service_uid() is None:
            notes.append(
                "services, NATS and Valkey are root: this machine does not let root give away the right to read"
            )
        if self.postgres_dir is not None:
            notes.append(
                f"the files of Postgres are in {self.postgres_dir}: run by root, it is user {POSTGRES_UID}, who "
                f"may not pass through to {self.data_dir}"
            )
        return notes


async def look(data_dir: Path, *, clock: Callable[[], float] = time.time) -> StackStatus:
    """How the stack in the data directory is.

    Args:
        clock: seconds since 1970.

    Raises:
        ServiceError: FAILED_PRECONDITION when its state cannot be read.
    """
    folder = DataDir(data_dir)
    state = folder.read() or State(stack_id="")
    started = StartedFile(folder.path)
    names = (*SERVERS, *_service_processes(state))
    parts = await asyncio.gather(*(_part(state, name, _version(started, state, name)) for name in names))
    now_s = clock()
    told = [_with_restarts(part, state.restarts.get(part.name), folder, now_s) for part in parts]
    consent = next((part for part in parts if part.name == "consent" and part.works), None)
    journal = None if consent is None else await journal_status(consent.address)
    postgres = folder.postgres(state.stack_id)
    disks = (folder.path, folder.journal(), *([] if "postgres" in state.external else [postgres]))
    return StackStatus(
        data_dir=folder.path,
        parts=(*told, *_supervisor(state, _version(started, state, SUPERVISOR))),
        journal=journal,
        installed=code_version(),
        alarms=disk_alarms(disks),
        postgres_dir=postgres if postgres.exists() and folder.path not in postgres.parents else None,
    )


def addresses(data_dir: Path) -> Mapping[str, str]:
    """Where each service of the stack in the data directory is called.

    Raises:
        ServiceError: FAILED_PRECONDITION when none was started there.
    """
    state = DataDir(data_dir).read()
    if state is None or not any(
        Process(name, record=state.processes.get(name)).alive() for name in _service_processes(state)
    ):
        raise ServiceError(
            Kind.FAILED_PRECONDITION, "STACK_IS_DOWN", f"nothing runs in {data_dir}; start it with `comity up`"
        )
    return state.addresses


def _service_processes(state: State) -> list[str]:
    """Every service, and what further replicas were started."""
    return in_order(dict.fromkeys((*SERVICES, *state.processes)))


def _version(started: StartedFile, state: State, name: str) -> str:
    """What a server's wheel was when it was started, and a service's code; empty where nobody wrote it down."""
    record = state.processes.get(name)
    known = started.of(name, record) if record is not None else None
    return known.version if known is not None else state.versions.get(name, "")


async def _part(state: State, name: str, version: str) -> Part:
    if name in state.external:
        found = await reachable(name, state.urls[name])
        part = Part(name, "external" if found else "unreachable", shown(state.urls[name]))
        return await _tried(state, part)
    address = f"127.0.0.1:{state.ports[name]}" if name in state.ports else ""
    record = state.processes.get(name)
    if record is None:
        return Part(name, "down", address, version=version)
    process = Process(name, record=record)
    if not process.alive():
        return Part(name, "crashed", address, version=version)
    answered = await _answers(state, name, address) and process.listens_on(state.ports[name])
    alarms = await standing_alarms(address) if answered and service_of(name) in SERVICES else ()
    part = Part(name, "up" if answered else "silent", address, pid=record.pid, version=version, alarms=alarms)
    return await _tried(state, part)


async def _tried(state: State, part: Part) -> Part:
    """A server that answers, tried as the services use it."""
    if part.name not in SERVERS or not part.works:
        return part
    url = state.urls[part.name]
    if not is_known_here(part.name, url, state.external):
        return part
    problems = await server_problems(part.name, url, state.databases)
    alarms = tuple(StandingAlarm("refused", problem, "", "") for problem in problems)
    return replace(part, state="refused", alarms=alarms) if problems else part


def _with_restarts(part: Part, done: Restarts | None, folder: DataDir, now_s: float) -> Part:
    """The part with what is told of its restarts, and an alarm where it ends again and again."""
    if done is None:
        return part
    alarms = part.alarms
    if too_many(done, now_s):
        next_try = f"the next try comes in {wait_s(done, now_s):.0f} s"
        alarm = StandingAlarm(
            "ends_again_and_again",
            f"It ended {done.in_a_row} times in a row; {'it runs now' if part.pid else next_try}.",
            f"See {folder.logs / part.name}.log.",
            iso(done.row_first_s),
        )
        alarms = (*alarms, alarm)
    return replace(part, alarms=alarms, restarts=Restarted(done.count, iso(done.first_s), iso(done.last_s)))


def _supervisor(state: State, version: str) -> list[Part]:
    record = state.processes.get(SUPERVISOR)
    if record is None:
        return []
    process = Process(SUPERVISOR, record=record)
    if process.alive() and not process.paused():
        return [Part(SUPERVISOR, "up", "", pid=record.pid, version=version)]
    told = "What ends is not started again."
    if process.alive():
        alarm = StandingAlarm("not_supervised", told, f"Let it go on with `kill -CONT {record.pid}`.", "")
        return [Part(SUPERVISOR, "silent", "", pid=record.pid, version=version, alarms=(alarm,))]
    alarm = StandingAlarm("not_supervised", told, "`comity up` mends that.", "")
    return [Part(SUPERVISOR, "crashed", "", alarms=(alarm,))]


def iso(at_s: float) -> str:
    """Seconds since 1970 as UTC, ISO 8601."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def _answers(state: State, name: str, address: str) -> bool:
    if service_of(name) in SERVICES:
        return await is_serving(address)
    if name not in state.urls:
        return False  # the first start has not come that far
    if name == "postgres":
        try:
            return await accepts(state.urls[name])
        except asyncpg.InvalidPasswordError:
            return False
    greeting = {"nats": b"", "valkey": b"PING\r\n"}[name]
    expected = {"nats": b"INFO", "valkey": b"NOAUTH"}[name]
    return expected in await exchange(state.ports[name], greeting)
