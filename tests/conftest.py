"""Real servers for every test that wants them: one set a pytest process, thrown away at its end."""

import asyncio
import atexit
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import asyncpg
import nats
import pytest
import redis.asyncio
from hypothesis import HealthCheck, settings

from cli.stack.provision import database_name, ensure_database, ensure_role, migrate_service, url_for
from cli.stack.servers import Servers
from cli.stack.state import temporary_folder

MakeDatabase = Callable[[str], Awaitable[str]]

# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("shared_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared_machine")

# Stacks of tests are nobody's last one.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="comity-test-state-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

_numbers = itertools.count(1)
_templates: set[str] = set()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes, a file's tests stay together, and all end-to-end tests share one stack.

    Tests of the supervisor stay together, too: two stacks that come up at once would want the same usual ports.
    """
    for item in items:
        folder = item.path.parent
        group = folder.name if folder.name in ("e2e", "stack") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Postgres, NATS and Valkey on free ports; the kernel ends them too if this process is killed."""
    with tempfile.TemporaryDirectory(prefix="comity-test-") as folder:
        running = Servers(Path(folder))
        asyncio.run(running.start())
        try:
            yield running
        finally:
            asyncio.run(running.stop())


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder for a stack, removed after the test; not under tmp_path, which is closed to root's Postgres."""
    with temporary_folder("comity-stack-") as folder:
        yield folder / "stack"


@pytest.fixture
async def database(servers: Servers) -> AsyncIterator[MakeDatabase]:
    """`await database("identity")`: address of a fresh database with that service's tables, dropped after the test."""
    made: list[str] = []

    async def make(service: str) -> str:
        admin = await asyncpg.connect(servers.postgres.url)
        try:
            template = await _template(admin, servers, service)
            name = f"test_{service}_{next(_numbers)}"
            await ensure_database(admin, name, owner=database_name(service), template=template)
        finally:
            await admin.close()
        made.append(name)
        return url_for(servers.postgres.url, database_name(service), servers.postgres.password, name)

    yield make
    admin = await asyncpg.connect(servers.postgres.url)
    try:
        for name in made:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


async def _template(admin: "asyncpg.Connection[asyncpg.Record]", servers: Servers, service: str) -> str:
    """A migrated database to copy from: migrating once and copying takes a tenth of migrating every time."""
    name, owner = f"template_{service}", database_name(service)
    if service not in _templates:
        await ensure_role(admin, owner, servers.postgres.password)
        await ensure_database(admin, name, owner=owner)
        await migrate_service(url_for(servers.postgres.url, owner, servers.postgres.password, name), service)
        _templates.add(service)
    return name


@pytest.fixture
async def nats_url(servers: Servers) -> AsyncIterator[str]:
    """Address of NATS; every stream that the test made is deleted after it."""
    yield servers.nats.url
    connection = await nats.connect(servers.nats.url)
    try:
        jetstream = connection.jetstream()
        for stream in await jetstream.streams_info():
            await jetstream.delete_stream(str(stream.config.name))
    finally:
        await connection.close()


@pytest.fixture
async def redis_url(servers: Servers) -> AsyncIterator[str]:
    """Address of Valkey; emptied after the test."""
    yield servers.valkey.url
    client = redis.asyncio.Redis.from_url(servers.valkey.url)
    try:
        await client.flushall()
    finally:
        await client.aclose()


@pytest.fixture
def hung_valkey(servers: Servers) -> Iterator[Callable[[bool], None]]:
    """`hung_valkey(True)`: Valkey stands still, its connections open, until `hung_valkey(False)` or the test's end."""

    def hang(hung: bool) -> None:
        servers.valkey.process.send(signal.SIGSTOP if hung else signal.SIGCONT)

    yield hang
    hang(False)
