"""Starts, watches and stops a whole stack: servers, databases and the five services."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from cli.stack import programs
from cli.stack.binaries import versions
from cli.stack.external import external_urls, require_reachable
from cli.stack.log_files import turn_over
from cli.stack.parts import Parts
from cli.stack.probe import is_serving, wait_serving
from cli.stack.processes import (
    STOP_SIGNALS,
    Command,
    Process,
    ProcessRecord,
    log_bytes,
    log_tail,
    signal_all,
    start_time,
)
from cli.stack.provision import SERVICES, provision
from cli.stack.replicas import check_replicas, in_order, replica_names, service_of
from cli.stack.restarts import Restarts, after
from cli.stack.rights import migrate_owned
from cli.stack.servers import together
from cli.stack.state import SUPERVISOR, DataDir
from services.chassis.errors import Kind, ServiceError

SERVICE_READY_S = 60.0
PROBE_EVERY_S = 0.1
# Each but the last is lost only where another program took a port between the check and the start.
START_TRIES = 3

Progress = Callable[[str], None]
Overrides = Mapping[str, Mapping[str, str]]


class Stack:
    """A stack in one data directory.

    `async with Stack(folder) as stack:` starts what does not run yet and stops everything at the end, also after an
    exception or Ctrl-C; the kernel ends it all should this process be killed.

    Args:
        data_dir: created when missing.
        services: the ones to run; the others get neither process nor database.
        replicas: how many processes a service runs as, where that is not one. They share its database, its durable
            consumers and its secrets; the others call them in turn. The second of decision is named decision-2.
        env: environment variables over what the stack sets, by service; "*" is for all of them.
        tied: nothing outlives this process. False for `comity up`.
        disposable: the data need not survive a failure of the machine; faster.
        watched: a supervisor that outlives this process starts again what ends unasked (cli.stack.watch).
        move_servers: use the servers that the environment names now, also where the stack was on others before.
        progress: told what is being done, one short line each.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        services: Collection[str] = SERVICES,
        replicas: Mapping[str, int] | None = None,
        env: Overrides | None = None,
        tied: bool = True,
        disposable: bool = False,
        watched: bool = False,
        move_servers: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.data_dir = DataDir(data_dir)
        check_replicas(replicas or {})
        self._wanted = [
            name
            for service in SERVICES
            if service in services
            for name in replica_names(service, (replicas or {}).get(service, 1))
        ]
        self._env = env or {}
        self._tied = tied
        self._watched = watched
        self._move_servers = move_servers
        self._progress = progress or (lambda _: None)
        self._lock = ExitStack()
        self._held = False
        self._parts = Parts(self.data_dir, self._wanted, tied=tied, disposable=disposable)
        # What start() started again and why, by name: it ran, with another version or other settings.
        self.renewed: dict[str, str] = {}
        # What else is to be known of the start, a sentence each.
        self.notes: list[str] = []
        # Length of each service's log when it was started last.
        self._log_begins: dict[str, int] = {}

    # Where things are.

    @property
    def addresses(self) -> Mapping[str, str]:
        """Where each service is called: host:port, or the target of all its replicas."""
        return self._parts.state.addresses

    def address(self, name: str) -> str:
        """host:port of one process: of the service, or of a replica."""
        return self._parts.address(name)

    def replicas(self, service: str) -> list[str]:
        """Names of the service's processes."""
        return [name for name in in_order(self._parts.processes) if service_of(name) == service]

    def database_url(self, service: str) -> str:
        """Address of the service's own database."""
        return self._parts.state.databases[service]

    @property
    def postgres_url(self) -> str:
        """Address of the administrator's database."""
        return self._parts.state.urls["postgres"]

    @property
    def nats_url(self) -> str:
        """Address of NATS."""
        return self._parts.state.urls["nats"]

    @property
    def redis_url(self) -> str:
        """Address of Valkey."""
        return self._parts.state.urls["valkey"]

    @property
    def traces_dir(self) -> Path:
        """Where services write their spans."""
        return self.data_dir.traces

    def log(self, name: str) -> Path:
        """Log of a service or server."""
        return self.data_dir.logs / f"{name}.log"

    def pid(self, name: str) -> int:
        """Pid of a service or server that was started."""
        pid = self._parts.processes[name].pid
        assert pid is not None, f"{name} was never started"
        return pid

    # Life.

    async def __aenter__(self) -> Self:
        """A stack that answers."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A stack that is stopped, whatever happened."""
        await self.stop()

    async def start(self) -> None:
        """Start what does not run; returns when all of it answers. If it fails, what this call started is stopped.

        Raises:
            ServiceError: what is wrong and how to mend it.
        """
        self.data_dir.create()
        self._hold()
        try:
            await self._take_up()
            turn_over(self.data_dir.logs, time.time())
            ran_before = {name for name, process in self._parts.processes.items() if process.alive()}
            try:
                await self._start_servers()
                await self._start_services()
                if self._watched:
                    await self._start_watching()
            except BaseException:
                await self._parts.stop_all(except_for=ran_before)
                raise
        except BaseException:
            self._release()
            raise
        if not self._tied:
            self._let_go()

    async def stop(self) -> None:
        """Stop everything that runs, what was started last first. External servers are left alone."""
        self._hold()
        try:
            if not self._parts.processes or not self._tied:
                self._parts.load(to_stop=True)  # also what others started meanwhile
            await self._parts.stop_all()
            self._parts.state.restarts = {}
            watching = self._parts.state.processes.pop(SUPERVISOR, None)
            self._parts.save()
        finally:
            self._release()
        if watching is not None and watching.pid != os.getpid():
            await Process(SUPERVISOR, record=watching).stop(STOP_SIGNALS)

    def watch_here(self) -> None:
        """Write this process down as the supervisor.

        Raises:
            ServiceError: FAILED_PRECONDITION when there is one that runs.
        """
        with self.data_dir.exclusive():
            self._parts.load()
            self.require_unsupervised()
            self._parts.record(SUPERVISOR, _this_process(), foreground=True)

    def require_unsupervised(self) -> None:
        """Returns when no supervisor runs.

        Raises:
            ServiceError: FAILED_PRECONDITION (SUPERVISED_ALREADY).
        """
        state = self.data_dir.read()
        process = Process(SUPERVISOR, record=state.processes.get(SUPERVISOR) if state is not None else None)
        if process.alive():
            raise ServiceError(
                Kind.FAILED_PRECONDITION,
                "SUPERVISED_ALREADY",
                f"process {process.pid} supervises {self.data_dir.path}; `comity down` ends it and the stack",
            )

    async def _start_watching(self) -> None:
        """Leave a supervisor behind, if there is none that runs as it would be started now.

        It starts services again with its own settings, so one with those of an earlier start would undo a change.
        """
        if self._watching_pid() is not None:
            if not (why := self._parts.outdated(SUPERVISOR, os.environ)):
                return
            self.renewed[SUPERVISOR] = "; ".join(why)
            old = self._parts.process(SUPERVISOR)
            self._parts.forget(SUPERVISOR)  # or it would stop the stack at its end
            await old.stop(STOP_SIGNALS)
        watching = Process(SUPERVISOR, tied=False)
        watching.spawn(programs.supervisor(self.data_dir), partial(self._parts.record, SUPERVISOR))
        watching.release()

    def _watching_pid(self) -> int | None:
        process = self._parts.process(SUPERVISOR)
        return process.pid if process.alive() else None

    def revive(self, names: Collection[str], now_s: float) -> list[str]:
        """Start those of *names* again that have ended unasked, where they were; which these were.

        It does not wait until they answer: what ends once more is seen as it was this time. For the supervisor.

        Raises:
            ServiceError: FAILED_PRECONDITION when another process is at work in the folder.
        """
        with self.data_dir.exclusive(patience_s=0.0):
            self._parts.load()
            ended = [name for name in names if name in self._parts.processes and self._parts.processes[name].crashed]
            for name in sorted(ended, key=lambda name: name not in self._parts.servers):
                self._parts.state.restarts[name] = after(self._parts.state.restarts.get(name), now_s)
                self._parts.save()
                if name in self._parts.servers:
                    self._parts.servers[name].spawn(partial(self._parts.record, name))
                else:
                    self._spawn(name)
                self._parts.processes[name].release()
            return ended

    @property
    def restarts(self) -> Mapping[str, Restarts]:
        """What was started again, by name."""
        return self._parts.state.restarts

    async def take_over(self, service: str) -> Command:
        """Start the servers and write this process down as the service; the command that it is to become."""
        await self.start()
        with self.data_dir.exclusive():
            await self._provision({service, *self._parts.state.databases})
            await self._parts.processes[service].stop(STOP_SIGNALS)
            self._parts.take_ports([service])
            command = self._command(service)
            self._parts.record(service, _this_process(), env=command.env, foreground=True)
            return command

    # Faults, for tests that show what happens then.

    async def kill(self, name: str) -> None:
        """End a service or server at once (SIGKILL), with its children."""
        await self._parts.processes[name].kill()

    def pause(self, name: str) -> None:
        """Let it stand still (SIGSTOP): its connections stay open and nothing answers."""
        signal_all(self._parts.processes[name].family(), signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let it go on."""
        signal_all(self._parts.processes[name].family(), signal.SIGCONT)

    async def restart(self, name: str) -> None:
        """Stop it if it runs, and start it again where it was; returns when it answers."""
        if name in self._parts.servers:
            await self._parts.servers[name].stop()
            await self._parts.servers[name].start(partial(self._parts.record, name), may_move=False)
        else:
            await self._parts.processes[name].stop(STOP_SIGNALS)
            self._spawn(name)
            await self._wait_service(name)

    @property
    def crashed(self) -> list[str]:
        """What ended without being asked to."""
        return [name for name, process in self._parts.processes.items() if process.crashed]

    # Servers.

    async def _take_up(self) -> None:
        """Load what there is, once it is sure that what would be started is what was there before.

        Raises:
            ServiceError: FAILED_PRECONDITION when servers would be others, or the files of Postgres are gone.
        """
        state = self.data_dir.read()
        if state is not None:
            self._parts.require_same_place(state, move_servers=self._move_servers)
        moved = state is not None and self.data_dir.moved(state)
        self._parts.load()
        if moved:
            await self._parts.stop_all()  # what runs was told of folders that are no longer there

    async def _start_servers(self) -> None:
        """Start the embedded servers, reach the external ones; then restart services that were told other addresses."""
        external = external_urls()
        self._progress("servers: Postgres, NATS, Valkey")
        await together(*(require_reachable(name, url) for name, url in external.items()))
        await together(*(self._start_server(name) for name in self._parts.servers if name not in external))
        urls = {name: external.get(name, server.url) for name, server in self._parts.servers.items()}
        if urls != self._parts.state.urls:
            await self._parts.stop_services()
        for name in external:
            await self._parts.servers[name].stop()
            self._parts.forget(name)
        self._parts.state.urls = urls
        self._parts.state.external = sorted(external)
        self._parts.state.versions = versions()
        self._parts.save()

    async def _start_server(self, name: str) -> None:
        server = self._parts.servers[name]
        if server.process.alive():
            old = self._parts.outdated(name, {})
            if await server.ready():
                if not old:
                    return
                self.renewed[name] = "; ".join(old)
            await server.stop()  # of another version; or it does not answer: hung, or paused
        await server.start(partial(self._parts.record, name))

    # Services.

    async def _start_services(self) -> None:
        await self._provision({*map(service_of, self._wanted), *self._parts.state.databases})
        await self._parts.stop_surplus()
        for tries_left in reversed(range(START_TRIES)):
            missing = [name for name in self._wanted if not await self._answers(name)]
            if self._parts.take_ports(missing):
                # The others were told addresses that are no longer true.
                await self._parts.stop_services()
                missing = self._wanted
            try:
                await self._start_missing(missing)
                break
            except ServiceError:
                if not tries_left or not any(map(self._parts.lost_its_port, missing)):
                    raise
        await self._renew([name for name in self._wanted if name not in missing])

    async def _start_missing(self, names: Collection[str]) -> None:
        for name in names:
            await self._parts.processes[name].stop(STOP_SIGNALS)
            self._spawn(name)
        await together(*(self._wait_service(name) for name in names))

    async def _renew(self, names: Collection[str]) -> None:
        """Start again, one after the other, what runs with other code or other settings than it would have now.

        Not beside a supervisor in the foreground, such as a unit's: it keeps its settings, and would undo that.
        """
        outdated = {name: why for name in names if (why := self._parts.outdated(name, self._command(name).env))}
        pid = self._watching_pid()
        if outdated and pid is not None and self._parts.is_foreground(SUPERVISOR):
            self.notes.append(
                f"process {pid} supervises the stack with its own settings and code, and {', '.join(outdated)} run "
                "with others than this shell's; restart it to change that (a unit: `systemctl --user restart comity`)"
            )
            return
        for name, why in outdated.items():
            self.renewed[name] = "; ".join(why)
            await self.restart(name)

    async def _provision(self, names: Collection[str]) -> None:
        """Give each of the services its role, its database and the tables in it."""
        self._progress("databases: roles, migrations")
        passwords = {name: self._parts.secrets.text(f"{name}_database_password") for name in SERVICES if name in names}
        self._parts.state.databases = await provision(self.postgres_url, passwords)
        await together(*(self._migrate(name, url) for name, url in self._parts.state.databases.items()))

    async def _migrate(self, name: str, url: str) -> None:
        why = await migrate_owned(self.postgres_url, url, name)
        if why and why not in self.notes:
            self.notes.append(why)

    async def _answers(self, name: str) -> bool:
        process = self._parts.processes[name]
        return process.alive() and await is_serving(self.address(name)) and self._parts.holds_its_port(name)

    def _spawn(self, name: str) -> None:
        self._progress(f"service: {name}")
        programs.rotate(self.log(name))
        self._log_begins[name] = log_bytes(self.log(name))
        self._parts.spawn(self._command(name))

    def _command(self, name: str) -> Command:
        overrides = {**self._env.get("*", {}), **self._env.get(service_of(name), {})}
        return programs.command(name, self.address(name), self._parts.surroundings(), overrides)

    async def _wait_service(self, name: str) -> None:
        """Returns once the service says it is serving, and it is this process that says so.

        Raises:
            ServiceError: UNAVAILABLE, with the end of its log, when it ends or stays silent.
        """
        waiting = asyncio.create_task(wait_serving(self.address(name), timeout_s=SERVICE_READY_S))
        until_s = time.monotonic() + SERVICE_READY_S
        try:
            while self._parts.processes[name].alive() and time.monotonic() < until_s:
                if not waiting.done():
                    await asyncio.wait({waiting}, timeout=PROBE_EVERY_S)
                elif waiting.exception() is not None:
                    break
                elif self._parts.holds_its_port(name):
                    return
                else:  # two stacks wanted this port at once, and it is the other one's service that answers
                    await asyncio.sleep(PROBE_EVERY_S)
        finally:
            waiting.cancel()
        tail = log_tail(self.log(name), since_bytes=self._log_begins.get(name, 0))
        what = (
            f"is not ready after {SERVICE_READY_S:.0f} s"
            if self._parts.processes[name].alive()
            else "ended while it started"
        )
        raise ServiceError(
            Kind.UNAVAILABLE,
            "SERVICE_DID_NOT_START",
            f"{name} {what}; its log {self.log(name)} ends:\n{tail}",
        )

    def _let_go(self) -> None:
        """Leave everything to itself, for `comity up` to end."""
        for process in self._parts.processes.values():
            process.release()
        self._release()

    def _hold(self) -> None:
        """Keep other processes from changing the data directory."""
        if not self._held:
            self._lock.enter_context(self.data_dir.exclusive())
            self._held = True

    def _release(self) -> None:
        self._lock.close()
        self._held = False


def _this_process() -> ProcessRecord:
    return ProcessRecord(os.getpid(), start_time(os.getpid()) or "")
