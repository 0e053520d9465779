"""The servers and processes of one stack as its folder names them: which there are, and on which ports.

What is written down is changed here and nowhere else; cli.stack.supervisor says when things are started and stopped.
"""

import asyncio
import os
import secrets as chance
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from cli.stack import programs
from cli.stack.external import external_urls, require_same
from cli.stack.ports import free_port, is_free
from cli.stack.postgres import PostgresServer
from cli.stack.processes import STOP_SIGNALS, Command, Process, ProcessRecord
from cli.stack.provision import SERVICES
from cli.stack.replicas import in_order, service_of
from cli.stack.server import Server
from cli.stack.servers import SERVERS, NatsServer, ValkeyServer
from cli.stack.started import StartedFile, differences, started_with
from cli.stack.state import DataDir, Secrets, State
from services.chassis.errors import Kind, ServiceError

# Where a service listens when nobody else is there, so that an address in a backend's settings stays true.
USUAL_PORTS = {"decision": 7070, "identity": 7071, "consent": 7072, "features": 7073, "feedback": 7074}


class Parts:
    """What a stack consists of. Loaded under the folder's lock; every change is written down at once.

    Args:
        wanted: names of the service processes that are to run.
        tied: see cli.stack.Stack, as disposable is.
    """

    def __init__(self, data_dir: DataDir, wanted: Sequence[str], *, tied: bool, disposable: bool) -> None:
        self._data_dir = data_dir
        self._wanted = wanted
        self._tied = tied
        self._disposable = disposable
        self._started = StartedFile(data_dir.path)
        self.state = State(stack_id="")
        self.servers: dict[str, Server] = {}
        self.processes: dict[str, Process] = {}

    def require_same_place(self, state: State, *, move_servers: bool) -> None:
        """Returns when what would be started is what was there before.

        Raises:
            ServiceError: FAILED_PRECONDITION when servers would be others, or the files of Postgres are gone.
        """
        if not move_servers:
            require_same(state.urls, state.external, external_urls())
        files = self._data_dir.postgres(state.stack_id) / "data"
        if state.databases and "postgres" not in (*state.external, *external_urls()) and not files.exists():
            raise ServiceError(
                Kind.FAILED_PRECONDITION,
                "POSTGRES_DATA_MISSING",
                f"{files} is gone, and everything recorded was in it; restore it, "
                f"or remove {self._data_dir.path} to begin anew",
            )

    def load(self, *, to_stop: bool = False) -> None:
        """Take up what state.json says, or begin anew; without the secrets *to_stop*, which needs none of them.

        Raises:
            ServiceError: FAILED_PRECONDITION when the state cannot be read, or a secret is gone that is needed.
        """
        state = self._data_dir.read() or State(stack_id=chance.token_hex(8))
        self.state = state
        # Where services that may still run from an earlier start were told that the others are.
        self.told = dict(state.addresses)
        self.secrets = Secrets(self._data_dir.secrets, state)
        self.secret_files = {} if to_stop else {name: self.secrets.file(name) for name in programs.SECRET_NAMES}
        if not to_stop:
            self.secret_files["model_public_key"] = self.secrets.model_public_key()
        passwords = {name: "" if to_stop else self.secrets.text(f"{name}_password") for name in SERVERS}
        names = in_order(dict.fromkeys((*SERVICES, *self._wanted, *state.processes)))
        self.processes = {name: self.process(name) for name in names}
        self.servers = {name: self._server(name, passwords[name]) for name in SERVERS}
        self.processes |= {name: server.process for name, server in self.servers.items()}
        self.save()

    def process(self, name: str) -> Process:
        """The process of that name, as it is written down."""
        return Process(name, record=self.state.processes.get(name), tied=self._tied)

    def _server(self, name: str, password: str) -> Server:
        port, process = self.state.ports.get(name, 0), self.process(name)
        logs = self._data_dir.logs
        if name == "postgres":
            folder = self._data_dir.postgres(self.state.stack_id)
            disposable = self._disposable
            return PostgresServer(
                folder, logs=logs, port=port, password=password, process=process, disposable=disposable
            )
        kind, folder = {"nats": (NatsServer, self._data_dir.nats), "valkey": (ValkeyServer, self._data_dir.valkey)}[
            name
        ]
        return kind(folder, logs=logs, port=port, password=password, process=process)

    # Where they are.

    def address(self, name: str) -> str:
        """host:port of one process."""
        return f"127.0.0.1:{self.state.ports[name]}"

    def holds_its_port(self, name: str) -> bool:
        """Whether the process runs and is the one that listens where it should, not another that was there first."""
        return self.processes[name].listens_on(self.state.ports[name])

    def lost_its_port(self, name: str) -> bool:
        """Whether the process has ended, and another one listens where it should have."""
        return not self.processes[name].alive() and not is_free(self.state.ports[name])

    def take_ports(self, missing: Collection[str]) -> bool:
        """Give every process of a service a port; whether a service that was called somewhere is now elsewhere."""
        before = self.told
        for name in in_order(self.processes):
            had = self.state.ports.get(name)
            wish = had or (0 if self._tied else USUAL_PORTS.get(name, 0))
            if not had or (name in missing and not self.processes[name].alive() and not is_free(wish)):
                self.state.ports[name] = wish if wish and is_free(wish) else free_port()
        self.save()
        self.told = dict(self.state.addresses)
        return any(self.told[service] != address for service, address in before.items())

    def surroundings(self) -> programs.Surroundings:
        """What every service is told."""
        return programs.Surroundings(
            addresses=self.told,
            databases=self.state.databases,
            nats_url=self.state.urls["nats"],
            redis_url=self.state.urls["valkey"],
            traces=self._data_dir.traces,
            logs=self._data_dir.logs,
            secret_files=self.secret_files,
            journal=self._data_dir.journal(disposable=self._disposable),
        )

    # Starting and stopping them.

    def spawn(self, command: Command) -> None:
        """Start a process with the command, and write down which it is and with what it was started."""
        self.processes[command.name].spawn(command, partial(self.record, command.name, env=command.env))

    def outdated(self, name: str, env: Mapping[str, str]) -> list[str]:
        """In what the process that runs differs from one started now with *env*, a phrase each; empty: in nothing.

        One that somebody started in a terminal of their own is theirs to start again, and differs in nothing.
        """
        record = self.state.processes[name]
        was = self._started.of(name, record)
        return [] if self.is_foreground(name) else differences(was, started_with(name, record, env))

    def is_foreground(self, name: str) -> bool:
        """Whether somebody started the process that is written down in a terminal or a unit of their own."""
        was = self._started.of(name, self.state.processes[name])
        return was is not None and was.foreground

    def record(
        self, name: str, record: ProcessRecord, *, env: Mapping[str, str] | None = None, foreground: bool = False
    ) -> None:
        """Write down that this process is the one of that name, and how it was started.

        Args:
            env: its environment; that of this process where none is given.
            foreground: in a terminal of somebody.
        """
        self.state.processes[name] = record
        if name in self.servers:
            self.state.ports[name] = self.servers[name].port
        self.save()
        env = os.environ if env is None else env
        self._started.put(name, started_with(name, record, env, foreground=foreground))

    async def stop_surplus(self) -> None:
        """End the replicas of wanted services that an earlier start had and this one has not."""
        ran = in_order(dict.fromkeys((*self.state.ports, *self.processes)))
        surplus = [name for name in ran if name not in SERVICES and name not in self._wanted]
        for name in surplus:
            if service_of(name) in self._wanted:
                if name in self.processes:
                    await self.processes.pop(name).stop(STOP_SIGNALS)
                self.state.ports.pop(name, None)
                self.forget(name)

    async def stop_services(self, *, except_for: Collection[str] = ()) -> None:
        """Stop the services, what was started last first."""
        for name in reversed(in_order(self.processes)):
            if name not in except_for:
                await self.processes[name].stop(STOP_SIGNALS)
                self.forget(name)

    async def stop_all(self, *, except_for: Collection[str] = ()) -> None:
        """Stop services, then servers."""
        await self.stop_services(except_for=except_for)
        names = [name for name in self.servers if name not in except_for]
        ends = await asyncio.gather(*(self.servers[name].stop() for name in names), return_exceptions=True)
        for name, end in zip(names, ends, strict=True):
            if isinstance(end, BaseException):
                raise end
            self.forget(name)

    def forget(self, name: str) -> None:
        """Write down that no process has that name."""
        if self.state.processes.pop(name, None):
            self.save()
            self._started.put(name, None)

    def save(self) -> None:
        """Write state.json."""
        self._data_dir.write(self.state)
