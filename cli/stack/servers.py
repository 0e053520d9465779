"""The three embedded servers as one: real NATS, Valkey and Postgres on free loopback ports."""

import asyncio
import secrets
from collections.abc import Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cli.stack.binaries import nats_server, valkey_server
from cli.stack.postgres import PostgresServer
from cli.stack.processes import Command
from cli.stack.server import Server, exchange

SERVERS = ("postgres", "nats", "valkey")


class NatsServer(Server):
    """The transport of every event, with JetStream on files."""

    name = "nats"

    @property
    def url(self) -> str:
        """Address for clients, with the password."""
        return f"nats://comity:{self.password}@127.0.0.1:{self.port}"

    @property
    def _config(self) -> Path:
        return self.folder / "nats.conf"

    def prepare(self) -> None:
        """Write its configuration, readable by its owner only since it holds the password."""
        super().prepare()
        self._config.touch(mode=0o600)
        self._config.write_text(
            f'listen: "127.0.0.1:{self.port}"\n'
            "server_name: comity\n"
            "max_payload: 1MB\n"
            f'authorization {{ user: comity, password: "{self.password}" }}\n'
            # Streams are transport, not the record: what a crash of the machine takes, the reconciler republishes.
            f'jetstream {{ store_dir: "{self.folder / "jetstream"}", max_memory_store: 64MB, max_file_store: 16GB }}\n'
        )

    def command(self) -> Command:
        """The server with its configuration file."""
        return self.unprivileged(str(nats_server()), "-c", str(self._config))

    async def ready(self) -> bool:
        """Whether it greets as a NATS server with JetStream does."""
        return b'"jetstream":true' in await exchange(self.port, b"")


class ValkeyServer(Server):
    """The cache: nothing in it that cannot be rebuilt, so it keeps no files."""

    name = "valkey"

    @property
    def url(self) -> str:
        """Address for clients, with the password."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def _config(self) -> Path:
        return self.folder / "valkey.conf"

    def prepare(self) -> None:
        """Write its configuration, readable by its owner only since it holds the password."""
        super().prepare()
        self._config.touch(mode=0o600)
        self._config.write_text(
            f"bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\n"
            f'dir "{self.folder}"\nsave ""\nappendonly no\n'
            "maxmemory 512mb\nmaxmemory-policy allkeys-lru\n"
        )

    def command(self) -> Command:
        """The server with its configuration file."""
        return self.unprivileged(str(valkey_server()), str(self._config))

    async def ready(self) -> bool:
        """Whether it takes the password and answers."""
        return b"+PONG" in await exchange(self.port, f"AUTH {self.password}\r\nPING\r\n".encode())


async def together(*starts: Coroutine[Any, Any, object]) -> None:
    """Run them side by side; when one fails the others are given up, and its error is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for start in starts:
                group.create_task(start)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


class Servers:
    """Servers without services, for tests: throw-away data, and nothing outlives this process.

    Used as `async with Servers(folder) as servers`, or by start() and stop().
    """

    def __init__(self, folder: Path) -> None:
        passwords = {name: secrets.token_hex(16) for name in SERVERS}
        # The server's user must be able to pass through to its own folder; reading stays with the owner.
        folder.chmod(0o711)
        logs = folder / "logs"
        self.postgres = PostgresServer(folder / "postgres", logs=logs, password=passwords["postgres"], disposable=True)
        self.nats = NatsServer(folder / "nats", logs=logs, password=passwords["nats"])
        self.valkey = ValkeyServer(folder / "valkey", logs=logs, password=passwords["valkey"])

    @property
    def by_name(self) -> Mapping[str, Server]:
        """Each server under its name."""
        return {server.name: server for server in (self.postgres, self.nats, self.valkey)}

    async def start(self) -> None:
        """Start all three side by side; if one fails, none is left running."""
        try:
            await together(*(server.start() for server in self.by_name.values()))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop all that run."""
        await asyncio.gather(*(server.stop() for server in self.by_name.values()))

    async def __aenter__(self) -> Self:
        """Started servers."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stopped servers."""
        await self.stop()
