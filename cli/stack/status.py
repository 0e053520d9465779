"""What of a stack really runs: pids that are ours, ports that answer. Changes nothing."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from cli.stack.external import reachable, shown
from cli.stack.postgres import accepts
from cli.stack.probe import StandingAlarm, is_serving, standing_alarms
from cli.stack.processes import Process
from cli.stack.provision import SERVICES
from cli.stack.replicas import in_order, service_of
from cli.stack.server import exchange
from cli.stack.servers import SERVERS
from cli.stack.state import DataDir, State
from services.chassis.errors import Kind, ServiceError


@dataclass(frozen=True, slots=True)
class Part:
    """One server or service.

    Args:
        state: up; down (not started, or stopped); crashed (started, and gone); silent (runs, does not answer);
            external or unreachable (run by somebody else).
        pid: of a process that runs.
        alarms: of a service's process: those that stand.
    """

    name: str
    state: str
    address: str
    pid: int | None = None
    version: str = ""
    alarms: tuple[StandingAlarm, ...] = ()

    @property
    def works(self) -> bool:
        """Whether it answers."""
        return self.state in ("up", "external")


@dataclass(frozen=True, slots=True)
class StackStatus:
    """All parts of a stack, servers first."""

    data_dir: Path
    parts: tuple[Part, ...]

    @property
    def summary(self) -> str:
        """`up`, `down`, or `partly up`."""
        if all(part.works for part in self.parts):
            return "up"
        return "partly up" if any(part.pid for part in self.parts) else "down"


async def look(data_dir: Path) -> StackStatus:
    """How the stack in the data directory is.

    Raises:
        ServiceError: FAILED_PRECONDITION when its state cannot be read.
    """
    folder = DataDir(data_dir)
    state = folder.read() or State(stack_id="")
    parts = await asyncio.gather(*(_part(state, name) for name in (*SERVERS, *_service_processes(state))))
    return StackStatus(data_dir=folder.path, parts=tuple(parts))


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


async def _part(state: State, name: str) -> Part:
    if name in state.external:
        found = await reachable(name, state.urls[name])
        return Part(name, "external" if found else "unreachable", shown(state.urls[name]))
    address = f"127.0.0.1:{state.ports[name]}" if name in state.ports else ""
    record = state.processes.get(name)
    version = state.versions.get(name, "")
    if record is None:
        return Part(name, "down", address, version=version)
    if not Process(name, record=record).alive():
        return Part(name, "crashed", address, version=version)
    answered = await _answers(state, name, address)
    alarms = await standing_alarms(address) if answered and service_of(name) in SERVICES else ()
    return Part(name, "up" if answered else "silent", address, pid=record.pid, version=version, alarms=alarms)


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
