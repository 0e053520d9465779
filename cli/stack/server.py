"""What the three embedded servers have in common: start on a free port, wait until it answers, stop."""

import asyncio
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from cli.stack.ports import free_port, is_free
from cli.stack.processes import POLL_S, Command, Process, ProcessRecord, log_bytes, log_tail
from cli.stack.users import service_uid
from services.chassis.errors import Kind, ServiceError

# Crash recovery of Postgres is what can take long.
READY_TIMEOUT_S = 60.0
# Each try is lost only when something else took the port between the check and the start.
START_TRIES = 3


class Server(ABC):
    """One embedded server with its data under *folder*.

    Args:
        folder: its own; created when missing.
        logs: folder for its log.
        port: where it should listen; another is taken when that one is not free. 0: any.
        password: what a client must know.
        process: when it was started earlier, or must outlive this process.
    """

    name: str
    tried_again_on: tuple[str, ...] = ("ddress already in use",)

    def __init__(
        self,
        folder: Path,
        *,
        logs: Path,
        port: int = 0,
        password: str,
        process: Process | None = None,
    ) -> None:
        self.folder = folder
        self.log = logs / f"{self.name}.log"
        self.port = port
        self.password = password
        self.process = process or Process(self.name)

    @property
    @abstractmethod
    def url(self) -> str:
        """Address for clients, with the password."""

    @abstractmethod
    def command(self) -> Command:
        """How it is started."""

    @abstractmethod
    async def ready(self) -> bool:
        """Whether it answers as the server it should be."""

    def prepare(self) -> None:
        """Write its configuration; called before every start."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def unprivileged(self, *argv: str) -> Command:
        """How a program is started that writes into its own folder alone."""
        return Command(
            name=self.name,
            argv=argv,
            env=plain_environment(),
            log=self.log,
            cwd=self.folder,
            uid=service_uid(),
            reads_all=True,
            writes=(self.folder,),
        )

    async def start(self, on_spawn: Callable[[ProcessRecord], None] | None = None, *, may_move: bool = True) -> None:
        """Start it and wait until it answers.

        Args:
            may_move: take another port when its own is not free.

        Raises:
            ServiceError: UNAVAILABLE, with the end of its log, when it does not come up.
        """
        for attempt in range(START_TRIES):
            if not self.port or (may_move and not is_free(self.port)):
                self.port = free_port()
            written_bytes = log_bytes(self.log)
            self.spawn(on_spawn)
            if await self._wait_ready():
                return
            tail = log_tail(self.log, since_bytes=written_bytes)
            await self.stop()
            if attempt + 1 == START_TRIES or not any(words in tail for words in self.tried_again_on):
                break
        raise ServiceError(
            Kind.UNAVAILABLE, "SERVER_DID_NOT_START", f"{self.name} did not start; its log {self.log} ends:\n{tail}"
        )

    def spawn(self, on_spawn: Callable[[ProcessRecord], None] | None = None) -> None:
        """Start it where it was, and wait for nothing."""
        self.prepare()
        self.process.spawn(self.command(), on_spawn)

    async def stop(self) -> None:
        """Stop it cleanly; nothing to do when it is not running."""
        await self.process.stop(self.command().stop_signals)

    async def _wait_ready(self) -> bool:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if not self.process.alive():
                return False
            if await self.ready():
                return True
            await asyncio.sleep(POLL_S)
        return False


def plain_environment() -> dict[str, str]:
    """This environment without Postgres' own variables, which would override what is configured."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


async def exchange(port: int, request: bytes) -> bytes:
    """What the port says to *request*, or of itself when that is empty; nothing when it does not answer."""
    try:
        async with asyncio.timeout(2.0):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request)
                return await reader.read(4096)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""
