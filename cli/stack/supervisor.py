"""Starts, watches and stops a whole stack: servers, databases and the five services."""

import asyncio
import os
import secrets as chance
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
from cli.stack.external import external_urls, require_reachable, require_same
from cli.stack.log_files import turn_over
from cli.stack.ports import free_port, is_free
from cli.stack.postgres import PostgresServer
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
from cli.stack.provision import SERVICES, migrate_service, provision
from cli.stack.replicas import check_replicas, in_order, replica_names, service_of
from cli.stack.restarts import Restarts, after
from cli.stack.server import Server
from cli.stack.servers import SERVERS, NatsServer, ValkeyServer, together
from cli.stack.state import SUPERVISOR, DataDir, Secrets, State
from services.chassis.errors import Kind, ServiceError

# Where a service listens when nobody else is there, so that an address in a backend's settings stays true.
USUAL_PORTS = {"decision": 7070, "identity": 7071, "consent": 7072, "features": 7073, "feedback": 7074}
SERVICE_READY_S = 60.0
PROBE_EVERY_S = 0.1

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
        self._disposable = disposable
        self._watched = watched
        self._move_servers = move_servers
        self._progress = progress or (lambda _: None)
        self._lock = ExitStack()
        self._held = False
        self._state = State(stack_id="")
        self._servers: dict[str, Server] = {}
        self._processes: dict[str, Process] = {}
        # Length of each service's log when it was started last.
        self._log_begins: dict[str, int] = {}

    # Where things are.

    @property
    def addresses(self) -> Mapping[str, str]:
        """Where each service is called: host:port, or the target of all its replicas."""
        return self._state.addresses

    def address(self, name: str) -> str:
        """host:port of one process: of the service, or of a replica."""
        return f"127.0.0.1:{self._state.ports[name]}"

    def replicas(self, service: str) -> list[str]:
        """Names of the service's processes."""
        return [name for name in in_order(self._processes) if service_of(name) == service]

    def database_url(self, service: str) -> str:
        """Address of the service's own database."""
        return self._state.databases[service]

    @property
    def postgres_url(self) -> str:
        """Address of the administrator's database."""
        return self._state.urls["postgres"]

    @property
    def nats_url(self) -> str:
        """Address of NATS."""
        return self._state.urls["nats"]

    @property
    def redis_url(self) -> str:
        """Address of Valkey."""
        return self._state.urls["valkey"]

    @property
    def traces_dir(self) -> Path:
        """Where services write their spans."""
        return self.data_dir.traces

    def log(self, name: str) -> Path:
        """Log of a service or server."""
        return self.data_dir.logs / f"{name}.log"

    def pid(self, name: str) -> int:
        """Pid of a service or server that was started."""
        pid = self._processes[name].pid
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
            ran_before = {name for name, process in self._processes.items() if process.alive()}
            try:
                await self._start_servers()
                await self._start_services()
                if self._watched:
                    self._start_watching()
            except BaseException:
                await self._stop_all(except_for=ran_before)
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
            if not self._processes or not self._tied:
                self._load(to_stop=True)  # also what others started meanwhile
            await self._stop_all()
            self._state.restarts = {}
            watching = self._state.processes.pop(SUPERVISOR, None)
            self._save()
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
            self._load()
            if (pid := self._watching_pid()) is not None:
                raise ServiceError(
                    Kind.FAILED_PRECONDITION,
                    "SUPERVISED_ALREADY",
                    f"process {pid} supervises {self.data_dir.path}; `comity down` ends it and the stack",
                )
            self._record(SUPERVISOR, ProcessRecord(os.getpid(), start_time(os.getpid()) or ""))

    def _start_watching(self) -> None:
        """Leave a supervisor behind, if there is none that runs."""
        if self._watching_pid() is None:
            watching = Process(SUPERVISOR, tied=False)
            watching.spawn(programs.supervisor(self.data_dir), partial(self._record, SUPERVISOR))
            watching.release()

    def _watching_pid(self) -> int | None:
        process = self._process(SUPERVISOR)
        return process.pid if process.alive() else None

    def revive(self, names: Collection[str], now_s: float) -> list[str]:
        """Start those of *names* again that have ended unasked, where they were; which these were.

        It does not wait until they answer: what ends once more is seen as it was this time. For the supervisor.

        Raises:
            ServiceError: FAILED_PRECONDITION when another process is at work in the folder.
        """
        with self.data_dir.exclusive(patience_s=0.0):
            self._load()
            ended = [name for name in names if name in self._processes and self._processes[name].crashed]
            for name in sorted(ended, key=lambda name: name not in self._servers):
                self._state.restarts[name] = after(self._state.restarts.get(name), now_s)
                self._save()
                if name in self._servers:
                    self._servers[name].spawn(partial(self._record, name))
                else:
                    self._spawn(name)
                self._processes[name].release()
            return ended

    @property
    def restarts(self) -> Mapping[str, Restarts]:
        """What was started again, by name."""
        return self._state.restarts

    async def take_over(self, service: str) -> Command:
        """Start the servers and write this process down as the service; the command that it is to become."""
        await self.start()
        with self.data_dir.exclusive():
            await self._provision({service, *self._state.databases})
            await self._processes[service].stop(STOP_SIGNALS)
            self._take_ports([service])
            self._record(service, ProcessRecord(os.getpid(), start_time(os.getpid()) or ""))
            return self._command(service)

    # Faults, for tests that show what happens then.

    async def kill(self, name: str) -> None:
        """End a service or server at once (SIGKILL), with its children."""
        await self._processes[name].kill()

    def pause(self, name: str) -> None:
        """Let it stand still (SIGSTOP): its connections stay open and nothing answers."""
        signal_all(self._processes[name].family(), signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let it go on."""
        signal_all(self._processes[name].family(), signal.SIGCONT)

    async def restart(self, name: str) -> None:
        """Stop it if it runs, and start it again where it was; returns when it answers."""
        if name in self._servers:
            await self._servers[name].stop()
            await self._servers[name].start(partial(self._record, name), may_move=False)
        else:
            await self._processes[name].stop(STOP_SIGNALS)
            self._spawn(name)
            await self._wait_service(name)

    @property
    def crashed(self) -> list[str]:
        """What ended without being asked to."""
        return [name for name, process in self._processes.items() if process.crashed]

    # Servers.

    async def _take_up(self) -> None:
        """Load what there is, once it is sure that what would be started is what was there before.

        Raises:
            ServiceError: FAILED_PRECONDITION when servers would be others, or the files of Postgres are gone.
        """
        state = self.data_dir.read()
        if state is not None:
            if not self._move_servers:
                require_same(state.urls, state.external, external_urls())
            files = self.data_dir.postgres(state.stack_id) / "data"
            if state.databases and "postgres" not in (*state.external, *external_urls()) and not files.exists():
                raise ServiceError(
                    Kind.FAILED_PRECONDITION,
                    "POSTGRES_DATA_MISSING",
                    f"{files} is gone, and everything recorded was in it; restore it, "
                    f"or remove {self.data_dir.path} to begin anew",
                )
        moved = state is not None and self.data_dir.moved(state)
        self._load()
        if moved:
            await self._stop_all()  # what runs was told of folders that are no longer there

    def _load(self, *, to_stop: bool = False) -> None:
        """Take up what state.json says, or begin anew; without the secrets *to_stop*, which needs none of them.

        Raises:
            ServiceError: FAILED_PRECONDITION when the state cannot be read, or a secret is gone that is needed.
        """
        state = self.data_dir.read() or State(stack_id=chance.token_hex(8))
        self._state = state
        # Where services that may still run from an earlier start were told that the others are.
        self._told = dict(state.addresses)
        self._secrets = Secrets(self.data_dir.secrets, state)
        self._secret_files = {} if to_stop else {name: self._secrets.file(name) for name in programs.SECRET_NAMES}
        passwords = {name: "" if to_stop else self._secrets.text(f"{name}_password") for name in SERVERS}
        names = in_order(dict.fromkeys((*SERVICES, *self._wanted, *state.processes)))
        self._processes = {name: self._process(name) for name in names}
        servers = (
            self._postgres(passwords["postgres"]),
            self._nats(passwords["nats"]),
            self._valkey(passwords["valkey"]),
        )
        self._servers = {server.name: server for server in servers}
        self._processes |= {name: server.process for name, server in self._servers.items()}
        self._save()

    def _process(self, name: str) -> Process:
        return Process(name, record=self._state.processes.get(name), tied=self._tied)

    def _postgres(self, password: str) -> PostgresServer:
        return PostgresServer(
            self.data_dir.postgres(self._state.stack_id),
            logs=self.data_dir.logs,
            port=self._state.ports.get("postgres", 0),
            password=password,
            process=self._process("postgres"),
            disposable=self._disposable,
        )

    def _nats(self, password: str) -> NatsServer:
        return NatsServer(
            self.data_dir.nats,
            logs=self.data_dir.logs,
            port=self._state.ports.get("nats", 0),
            password=password,
            process=self._process("nats"),
        )

    def _valkey(self, password: str) -> ValkeyServer:
        return ValkeyServer(
            self.data_dir.valkey,
            logs=self.data_dir.logs,
            port=self._state.ports.get("valkey", 0),
            password=password,
            process=self._process("valkey"),
        )

    async def _start_servers(self) -> None:
        """Start the embedded servers, reach the external ones; then restart services that were told other addresses."""
        external = external_urls()
        self._progress("servers: Postgres, NATS, Valkey")
        await together(*(require_reachable(name, url) for name, url in external.items()))
        await together(*(self._start_server(name) for name in self._servers if name not in external))
        urls = {name: external.get(name, server.url) for name, server in self._servers.items()}
        if urls != self._state.urls:
            await self._stop_services()
        for name in external:
            await self._servers[name].stop()
            self._forget(name)
        self._state.urls = urls
        self._state.external = sorted(external)
        self._state.versions = versions()
        self._save()

    async def _start_server(self, name: str) -> None:
        server = self._servers[name]
        if server.process.alive():
            if await server.ready():
                return
            await server.stop()  # it runs and does not answer: hung, or paused
        await server.start(partial(self._record, name))

    # Services.

    async def _start_services(self) -> None:
        await self._provision({*map(service_of, self._wanted), *self._state.databases})
        await self._stop_surplus()
        missing = [name for name in self._wanted if not await self._answers(name)]
        if self._take_ports(missing):
            # The others were told addresses that are no longer true.
            await self._stop_services()
            missing = self._wanted
        for name in missing:
            await self._processes[name].stop(STOP_SIGNALS)
            self._spawn(name)
        await together(*(self._wait_service(name) for name in missing))

    async def _stop_surplus(self) -> None:
        """End the replicas of wanted services that an earlier start had and this one has not."""
        ran = in_order(dict.fromkeys((*self._state.ports, *self._processes)))
        surplus = [name for name in ran if name not in SERVICES and name not in self._wanted]
        for name in surplus:
            if service_of(name) in self._wanted:
                if name in self._processes:
                    await self._processes.pop(name).stop(STOP_SIGNALS)
                self._state.ports.pop(name, None)
                self._forget(name)

    async def _provision(self, names: Collection[str]) -> None:
        """Give each of the services its role, its database and the tables in it."""
        self._progress("databases: roles, migrations")
        passwords = {name: self._secrets.text(f"{name}_database_password") for name in SERVICES if name in names}
        self._state.databases = await provision(self.postgres_url, passwords)
        await together(*(migrate_service(url, name) for name, url in self._state.databases.items()))

    async def _answers(self, name: str) -> bool:
        return self._processes[name].alive() and await is_serving(self.address(name))

    def _take_ports(self, missing: Collection[str]) -> bool:
        """Give every process of a service a port; whether a service that was called somewhere is now elsewhere."""
        before = self._told
        for name in in_order(self._processes):
            had = self._state.ports.get(name)
            wish = had or (0 if self._tied else USUAL_PORTS.get(name, 0))
            if not had or (name in missing and not self._processes[name].alive() and not is_free(wish)):
                self._state.ports[name] = wish if wish and is_free(wish) else free_port()
        self._save()
        self._told = dict(self.addresses)
        return any(self._told[service] != address for service, address in before.items())

    def _spawn(self, name: str) -> None:
        self._progress(f"service: {name}")
        programs.rotate(self.log(name))
        self._log_begins[name] = log_bytes(self.log(name))
        self._processes[name].spawn(self._command(name), partial(self._record, name))

    def _command(self, name: str) -> Command:
        around = programs.Surroundings(
            addresses=self._told,
            databases=self._state.databases,
            nats_url=self.nats_url,
            redis_url=self.redis_url,
            traces=self.data_dir.traces,
            logs=self.data_dir.logs,
            secret_files=self._secret_files,
            journal=self.data_dir.journal(disposable=self._disposable),
        )
        overrides = {**self._env.get("*", {}), **self._env.get(service_of(name), {})}
        return programs.command(name, self.address(name), around, overrides)

    async def _wait_service(self, name: str) -> None:
        """Returns once the service says it is serving.

        Raises:
            ServiceError: UNAVAILABLE, with the end of its log, when it ends or stays silent.
        """
        waiting = asyncio.create_task(wait_serving(self.address(name), timeout_s=SERVICE_READY_S))
        try:
            while not waiting.done() and self._processes[name].alive():
                await asyncio.wait({waiting}, timeout=PROBE_EVERY_S)
            if waiting.done() and waiting.exception() is None:
                return
        finally:
            waiting.cancel()
        tail = log_tail(self.log(name), since_bytes=self._log_begins.get(name, 0))
        what = "is not ready after 60 s" if self._processes[name].alive() else "ended while it started"
        raise ServiceError(
            Kind.UNAVAILABLE,
            "SERVICE_DID_NOT_START",
            f"{name} {what}; its log {self.log(name)} ends:\n{tail}",
        )

    # Stopping, and what is written down.

    async def _stop_services(self, *, except_for: Collection[str] = ()) -> None:
        for name in reversed(in_order(self._processes)):
            if name not in except_for:
                await self._processes[name].stop(STOP_SIGNALS)
                self._forget(name)

    async def _stop_all(self, *, except_for: Collection[str] = ()) -> None:
        await self._stop_services(except_for=except_for)
        names = [name for name in self._servers if name not in except_for]
        ends = await asyncio.gather(*(self._servers[name].stop() for name in names), return_exceptions=True)
        for name, end in zip(names, ends, strict=True):
            if isinstance(end, BaseException):
                raise end
            self._forget(name)

    def _record(self, name: str, record: ProcessRecord) -> None:
        self._state.processes[name] = record
        if name in self._servers:
            self._state.ports[name] = self._servers[name].port
        self._save()

    def _let_go(self) -> None:
        """Leave everything to itself, for `comity up` to end."""
        for process in self._processes.values():
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

    def _forget(self, name: str) -> None:
        if self._state.processes.pop(name, None):
            self._save()

    def _save(self) -> None:
        self.data_dir.write(self._state)
